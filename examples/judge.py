"""A judge: an essay is weighed along several dimensions at once, then graded."""

import weir as w

DIMENSIONS = ["clarity", "originality", "evidence"]


@w.function
def judge(s, essay):
    s += w.system("You judge essays.")
    s += w.user(f"Here is an essay:\n\n{essay}\n\nDoes it make sense, or is it nonsense?")
    s += w.assistant(w.select("sense", ["It makes sense.", "It is nonsense."]))
    if s["sense"] == "It is nonsense.":
        s["grade"] = "none"
        return
    with s.fork(len(DIMENSIONS)) as branches:
        branches += [w.user(f"Weigh its {name} in one sentence.") for name in DIMENSIONS]
        branches += w.assistant(w.gen("judgment", max_tokens=32, stop="\n"))
    s += w.user("The judgments are:\n" + "\n".join(s["judgment"]) + "\nSo which grade is it?")
    s += w.assistant(w.gen("grade", choices=["A", "B", "C", "D"]))


if __name__ == "__main__":
    w.set_default_backend(w.Runtime("smollm2-135m"))
    essay = "Rivers made cities. Where water bends, people stop, trade and stay."
    state = judge.run(essay, temperature=0)
    print(state.text())
