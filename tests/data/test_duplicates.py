import random

from workbench.data.duplicates import distinct, fingerprint


def prose(seed, words=400):
    rng = random.Random(seed)
    return b" ".join(b"w%d" % rng.randrange(10**6) for _ in range(words)) + b"\n"


def with_changes(document, changes):
    """The document with that many words replaced, far from each other."""
    words = document.split(b" ")
    for i in range(changes):
        words[(2 * i + 1) * len(words) // (2 * changes)] = b"changed"
    return b" ".join(words)


def kept(documents):
    return distinct(map(fingerprint, documents), documents.__getitem__)


def test_documents_that_share_less_than_the_threshold_are_kept():
    document = prose(0, words=400)  # 393 shingles; a word changed takes 8 of them away and brings 8 new ones
    assert kept([document, with_changes(document, 7)])[0] == [0]  # Jaccard (393-56)/(393+56) = 0.75
    assert kept([document, with_changes(document, 10)])[0] == [0, 1]  # (393-80)/(393+80) = 0.66


def test_minhash_finds_nearly_all_pairs_at_the_threshold():
    """Missed with probability 2e-4 each, so that more than one in a hundred is a fault."""
    documents = [prose(i) for i in range(100)]
    found, repeats = kept([*documents, *(with_changes(document, 8) for document in documents)])  # Jaccard 0.72
    assert repeats["near"] >= 99
    assert found[:100] == list(range(100))


def test_white_space_at_the_ends_of_lines_makes_no_document_another():
    document = b"one two\nthree\n"
    assert kept([document, document.replace(b"\n", b"  \r\n"), b"one  two\nthree\n"]) == (
        [0, 2],
        {"exact": 1, "near": 0},
    )


def test_a_document_is_read_again_only_to_be_held_against_a_candidate():
    asked = []
    distinct(map(fingerprint, [prose(i) for i in range(20)]), lambda index: asked.append(index))
    assert asked == []
