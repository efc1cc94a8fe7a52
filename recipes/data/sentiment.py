"""Sentiment of short texts as people rated it: movie reviews, news editorials, tweets and product reviews.

Ground truth of C.J. Hutto and E. Gilbert, VADER (ICWSM 2014), https://doi.org/10.1609/icwsm.v8i1.14550: each text has
the mean of at least twenty ratings between -4 (extremely negative) and 4 (extremely positive).
"""

import io
import tarfile
from collections.abc import Iterator, Sequence

from datasets import ClassLabel, Features, Value

from .packages import PackageFile, fetch_package


ARCHIVE = PackageFile(
    name="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    licence="MIT",
)
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
# source -> its file
FILES = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "reviews": "amazonReviewSnippets_GroundTruth.txt",
}
FEATURES = Features(
    {
        "text": Value("string"),
        "rating": Value("float32"),
        "label": ClassLabel(names=["negative", "positive"]),
        "source": ClassLabel(names=list(FILES)),
    }
)


def rows(minimum_intensity: float = 0.0, sources: Sequence[str] = tuple(FILES)) -> Iterator[dict]:
    """Yields text, rating in [-4, 4], label (the rating's sign) and source.

    Args:
        minimum_intensity: leaves out texts whose rating is nearer to 0; with 1.0 the label is beyond dispute.
        sources: which of the kinds of texts: movie, news, tweets, reviews.
    """
    if unknown := sorted(set(sources) - set(FILES)):
        raise ValueError(f"dataset 'sentiment-ratings': sources={unknown} unknown; legal are {', '.join(FILES)}")
    with tarfile.open(fetch_package(ARCHIVE)) as package:
        inner = io.BytesIO(package.extractfile(INNER).read())
    with tarfile.open(fileobj=inner) as archive:
        for source in sources:
            for line in archive.extractfile(f"hutto_ICWSM_2014/{FILES[source]}").read().decode("utf-8").splitlines():
                _, rating, text = line.split("\t")
                rating = float(rating)
                if abs(rating) >= minimum_intensity:
                    label = "positive" if rating > 0 else "negative"
                    yield {"text": text.strip(), "rating": rating, "label": label, "source": source}
