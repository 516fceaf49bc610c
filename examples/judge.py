"""A judge: an essay is weighed along several dimensions at once, then graded."""

import weir as w

DIMENSIONS = ["clarity", "originality", "evidence"]


@w.function
def judge(s, essay):
    s += w.system("You judge essays.")
    s += w.user(f"Here is an essay:\n\n{essay}\n\nIs it about anything at all? Say yes or no.")
    s += w.assistant(w.select("related", ["yes", "no"]))
    if s["related"] == "no":
        s["grade"] = "none"
        return
    with s.fork(len(DIMENSIONS)) as branches:
        branches += [w.user(f"Weigh its {name} in one sentence.") for name in DIMENSIONS]
        branches += w.assistant(w.gen("judgment", max_tokens=32, stop="\n"))
    s += w.user("The judgments are:\n" + "\n".join(s["judgment"]) + "\nSo which grade is it?")
    s += w.assistant(w.gen("grade", choices=["A", "B", "C", "D"]))


if __name__ == "__main__":
    w.set_default_backend(w.Runtime("smollm2-135m"))
    state = judge.run("Rivers made cities. Where water bends, people stop, trade and stay.")
    print(state.text())
