"""Simple methods that a trained model is compared with, on the same examples."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from datasets import Dataset
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import MultinomialNB
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline


def most_frequent(labels: list, count: int) -> list:
    """The most frequent label, `count` times."""
    return [Counter(labels).most_common(1)[0][0]] * count


def naive_bayes(texts: list[str], labels: list, others: list[str]) -> list:
    """Labels of `others` by multinomial naive Bayes on counts of words and pairs of words, learned on `texts`.

    The most frequent label, where those have no words of two letters or more.
    """
    if not _have_words(texts):
        return most_frequent(labels, len(others))
    model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), MultinomialNB())
    return model.fit(list(texts), labels).predict(list(others)).tolist()


def ridge(texts: list[str], numbers: list[float], others: list[str]) -> list[float]:
    """Numbers of `others` by ridge regression on tf-idf of words and pairs of words, learned on `texts`.

    The mean, where those have no words of two letters or more.
    """
    if not _have_words(texts):
        return [sum(numbers) / len(numbers)] * len(others)
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), Ridge())
    return model.fit(list(texts), numbers).predict(list(others)).tolist()


def _have_words(texts: list[str]) -> bool:
    """Whether scikit-learn finds words, of which it refuses to have none."""
    return any(re.search(r"\b\w\w+\b", text) for text in texts)


def tags_of_words(words: list[list[str]], tags: list[list[str]], others: list[list[str]]) -> list[list[str]]:
    """The most frequent tag of each word in training; of a word that is not there, the most frequent of all."""
    counts, total = defaultdict(Counter), Counter()
    for sentence, its_tags in zip(words, tags):
        total.update(its_tags)
        for word, tag in zip(sentence, its_tags):
            counts[word][tag] += 1
    best = {word: counter.most_common(1)[0][0] for word, counter in counts.items()}
    default = total.most_common(1)[0][0]
    return [[best.get(word, default) for word in sentence] for sentence in others]


def line_like_question(question: str, context: str) -> str:
    """The line of a context that shares most words with the question, without what stands before its colon."""

    def words(line: str) -> set[str]:
        return set(re.sub(r"[:(`?]", " ", line.lower()).split())

    wanted = words(question)
    best = max(context.splitlines() or [""], key=lambda line: len(wanted & words(line)) / (1 + len(words(line))))
    before, _, after = best.partition(":")
    return (after or before).strip()


def nearest_neighbour(train: Dataset, sources: Sequence[str]) -> list[str]:
    """For each source, the target of the most similar training source: cosine of TF-IDF vectors of words."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]+")
    index = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectorizer.fit_transform(train["source"][:]))
    nearest = index.kneighbors(vectorizer.transform(sources), return_distance=False)[:, 0]
    targets = train["target"][:]
    return [targets[i] for i in nearest]
