"""A fork: two tips are expanded side by side, and a summary reads both."""

import weir as w


@w.function
def tips(s, topic):
    s += f"Here are two tips for {topic}: 1. Balanced diet. 2. Regular exercise.\n\n"
    branches = s.fork(2)
    for number, branch in enumerate(branches, 1):
        branch += f"Now, expand tip {number} into a paragraph:\n"
        branch += w.gen("paragraph", max_tokens=64, stop="\n\n")
    s += "Tip 1: " + branches[0]["paragraph"] + "\n"
    s += "Tip 2: " + branches[1]["paragraph"] + "\n"
    s += "In summary," + w.gen("summary", max_tokens=32)


if __name__ == "__main__":
    w.set_default_backend(w.Runtime("smollm2-135m"))
    print(tips.trace(), end="\n\n")
    print(tips.run("staying healthy").text())
