"""Few-shot classification: the examples are computed once, all labels are scored in one call."""

import weir as w

LABELS = [" positive", " negative"]
EXAMPLES = """\
Review: The food was wonderful and the staff were kind.
Sentiment: positive

Review: It broke on the second day and nobody answered my letters.
Sentiment: negative

Review: A charming film that I will gladly watch again.
Sentiment: positive

Review: Slow, loud and far too expensive.
Sentiment: negative

"""


@w.function
def classify(s, review):
    s += EXAMPLES
    s += f"Review: {review}\nSentiment:"
    s += w.select("sentiment", LABELS)


if __name__ == "__main__":
    w.set_default_backend(w.Runtime("smollm2-135m"))
    reviews = ["I loved every minute of it.", "A waste of time and money."]
    for review, state in zip(reviews, classify.run_batch([[r] for r in reviews]), strict=True):
        print(f"{state['sentiment'].strip():>8}: {review}")
