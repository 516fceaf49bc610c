"""Skeleton of thought: an outline first, then all its points at once, joined in order."""

import weir as w

POINTS = 3


@w.function
def skeleton(s, question):
    s += w.system("You are a helpful assistant.")
    s += w.user(f"{question}\nGive {POINTS} points, a few words each.")
    with s.assistant():
        for number in range(1, POINTS + 1):
            s += f"{number}. " + w.gen(f"point_{number}", max_tokens=12, stop="\n") + "\n"
    with s.fork(POINTS) as branches:
        for number, branch in enumerate(branches, 1):
            branch += w.user(f"Write two sentences about point {number}: {s[f'point_{number}']}")
            branch += w.assistant(w.gen("paragraph", max_tokens=48))
    s["essay"] = "\n\n".join(s["paragraph"])


if __name__ == "__main__":
    w.set_default_backend(w.Runtime("smollm2-135m"))
    print(skeleton.run("Why do people travel?", temperature=0)["essay"])
