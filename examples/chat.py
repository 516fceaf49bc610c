"""A conversation of several turns: each question goes on from the answers before it."""

import weir as w


@w.function
def chat(s, questions):
    s += w.system("You are a helpful assistant. Answer in one sentence.")
    for number, question in enumerate(questions):
        s += w.user(question)
        s += w.assistant(w.gen(f"answer_{number}", max_tokens=48))


if __name__ == "__main__":
    w.set_default_backend(w.Runtime("smollm2-135m"))
    questions = ["What is the capital of France?", "What language do people speak there?"]
    state = chat.run(questions, temperature=0)
    for message in state.messages():
        print(f"{message['role']:>9}: {message['content']}")
