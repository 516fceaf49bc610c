"""A tree of thought: plans, solutions of each plan, and a vote on what they come to."""

from collections import Counter

import weir as w

BRANCHES = 2


def propose_plan(s, question):
    s += w.user(
        f"{question}\nPropose a short plan to solve this. Do not solve it yet, just say how."
    )
    s += w.assistant(w.gen("plan", max_tokens=40))


def execute_plan(s):
    s += w.user("Now carry out the plan, step by step.")
    s += w.assistant(w.gen("solution", max_tokens=60))


def conclude(s):
    s += w.user("So what is the final answer? Give the number alone.")
    s += w.assistant(w.gen("answer", max_tokens=8, temperature=0))


@w.function
def tree_of_thought(s, question):
    answers = []
    plans = s.fork(BRANCHES)
    for plan in plans:
        propose_plan(plan, question)
        solutions = plan.fork(BRANCHES)
        for solution in solutions:
            execute_plan(solution)
            conclude(solution)
            answers.append(solution)
    votes = Counter(solution["answer"].strip() for solution in answers)
    s["answer"], s["votes"] = votes.most_common(1)[0][0], dict(votes)


if __name__ == "__main__":
    w.set_default_backend(w.Runtime("smollm2-135m"))
    state = tree_of_thought.run("A box holds 3 bags of 4 apples. How many apples are there?")
    print(state["votes"], "so:", state["answer"])
