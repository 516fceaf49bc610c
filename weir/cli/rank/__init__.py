"""`weir rank`: collect lengths of answers, train a ranker on them, see how well it ranks."""
