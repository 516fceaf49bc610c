"""ReAct: the model thinks, asks for a tool, reads what it says, and goes on. The tool is Python."""

import weir as w

FACTS = {
    "eiffel tower": "The Eiffel Tower is a tower in Paris, 330 metres high.",
    "paris": "Paris is the capital of France, with two million inhabitants.",
}
EXAMPLE = """\
Question: How high is the Eiffel Tower?
Thought 1: I should look up the Eiffel Tower.
Action 1: Search[Eiffel Tower]
Observation 1: The Eiffel Tower is a tower in Paris, 330 metres high.
Thought 2: It is 330 metres high.
Action 2: Finish[330 metres]

"""


def search(words):
    return FACTS.get(words.strip().lower(), f"Nothing is known of {words.strip()}.")


@w.function
def react(s, question, steps=3):
    s += EXAMPLE
    s += f"Question: {question}\n"
    for step in range(1, steps + 1):
        s += f"Thought {step}:" + w.gen(f"thought_{step}", max_tokens=32, stop="\n") + "\n"
        s += f"Action {step}:" + w.select(f"action_{step}", [" Search[", " Finish["])
        s += w.gen(f"argument_{step}", max_tokens=12, stop=["]", "\n"]) + "]\n"
        if s[f"action_{step}"] == " Finish[":
            s["answer"] = s[f"argument_{step}"]
            return
        s += f"Observation {step}: {search(s[f'argument_{step}'])}\n"
    s += "So the answer is:" + w.gen("answer", max_tokens=12, stop="\n")


if __name__ == "__main__":
    w.set_default_backend(w.Runtime("smollm2-135m"))
    print(react.run("What is the capital of France?", temperature=0).text())
