"""The pages that a newcomer reads are in plain words; a machine counts, looks for old names and follows the links."""

import hashlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MOST_WORDS = 25
GLOSSARY = ROOT / "docs" / "concepts" / "glossary.md"
SOLD = [ROOT / "README.md", *sorted((ROOT / "bundles").glob("*/docs/README.md"))]
PAGES = [
    *SOLD,
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs" / "concepts").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
]
RIDDLES = [
    r"\bin the pose of\b",
    r"\bin eight (views|poses) around\b",
    r"\basked in\b",
    r"(?<!lateral )(?<!other )\bviews?\b",  # of a radiograph it is the right word
    r"\bleans?\b|\bleaned\b|\bleaning\b",
    r"\bin doubt\b",
    r"\bturned back\b",
    r"\ba way back\b|\bway back\b",
    r"\blooks? (at|several times|three times)\b",
    r"\bin one piece\b|\bfalls? apart\b|\bnever five\b",
    r"\bcalms?\b",
]
OLD_NAMES = [
    r"\bnaive\b",
    r"\brivals?\b",
    r"\bdoubt_above\b",
    r"\bmax_rise\b",
    r"\bshrinkings\b",
    r"\bmilder\b",
    r"--views\b",
    r"\bMotionEnergy\b",
    r"\bTimeDependent\b",
    r"\bcalming\b",
    r"\btame(_log_odds)?\b",
    r"\bstart_at_identity\b",
    r"\bturn_(generator|image)\b",
    r"\b(exp|inverse)_chain\b",
    r"\bmean_answer\b",
    r"\buncertainty (lean|doubt)\b",
    r"\bmonai_diffeo\.(data|experiments)\b",
    r"\bfamilies\.cpa\b",
]
ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|et al|cf|vs|Proc|Fig|No|Quant|Imaging|Med|Surg|IEEE)\.$")


def identify(page):
    return str(page.relative_to(ROOT))


def prose(markdown):
    """Paragraphs, list items and quotations as words: without code blocks, comments, tables, headings and targets of links."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.S | re.M)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]+`", lambda span: "_" + (re.sub(r"\W+", "_", span[0]).strip("_") or "sign"), text)
    blocks, open_block = [], []
    for line in [*text.splitlines(), ""]:
        starts = re.match(r"\s*([*+-]|\d+\.)\s+", line)
        alone = not line.strip() or line.lstrip().startswith(("|", "#", ">"))
        if (starts or alone) and open_block:
            blocks.append(" ".join(open_block))
            open_block = []
        if not alone:
            open_block.append(line[starts.end() :] if starts else line.strip())
    return [block.replace("*", "") for block in blocks]


def sentences(markdown):
    """A sentence ends with its block, or at a full stop, question mark or exclamation mark before a new beginning."""
    found = []
    for block in prose(markdown):
        begin = 0
        for end in re.finditer(r"[.!?]['\")]?(?=\s+[\"'(]?[A-Z0-9_])", block):
            if not ABBREVIATIONS.search(block[begin : end.start() + 1]):
                found.append(block[begin : end.end()].strip())
                begin = end.end()
        found.append(block[begin:].strip())
    return [sentence for sentence in found if sentence]


def count_words(sentence):
    return len(re.findall(r"[^\W_][\w'’.,/:%°²+–-]*", sentence))


def long_sentences(markdown):
    counts = {sentence: count_words(sentence) for sentence in sentences(markdown)}
    return {sentence: count for sentence, count in counts.items() if count > MOST_WORDS}


def matches(patterns, text):
    """What was found, with its surroundings."""
    return [found for pattern in patterns for found in re.findall(rf".{{0,40}}(?:{pattern}).{{0,40}}", text, re.I)]


def dead_links(markdown, folder):
    links = re.findall(r"\[[^\]]*\]\(([^)#\s]+)", re.sub(r"^```.*?^```", "", markdown, flags=re.S | re.M))
    return [link for link in links if "://" not in link and not (folder / link).exists()]


def used_before_defined(markdown, terms):
    """Words in bold print that are no terms, or that stand somewhere before without it."""
    text = re.sub(
        r"^#.*$|^!\[.*$|\]\([^)]*\)", "", re.sub(r"^```.*?^```|^## Tags.*?(?=^#)", "", markdown, flags=re.S | re.M), flags=re.M
    )
    text = " ".join(text.split())
    bold = [word for word in dict.fromkeys(re.findall(r"\*\*(.+?)\*\*", text)) if not re.fullmatch(r"[\d.]+", word)]
    first = {word: re.search(rf"(\*\*)?(?<![\w/]){re.escape(word)}(?![\w/])", text, re.I) for word in bold}
    return [word for word in bold if word.lower() not in terms or not first[word][1]]


def glossary():
    """Terms in lower case, with what each means."""
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", GLOSSARY.read_text(), re.M)
    return {term.replace("`", "").lower(): meaning for term, meaning in rows if term != "term"}


def test_the_splitter_sees_sentences_and_only_sentences():
    page = """# A heading of any length is no sentence

One sentence. Two of `MONAI. Yes` are two, e.g. this
one! Is a [link with words](http://a.b/c. D) a word?

| a table. | Is none. |
<!-- Nor. A comment -->
```
code. Is. None.
```
* An item is **one** sentence
* Dice is 0.9 of 1.0. Then the next
"""
    assert sentences(page) == [
        "One sentence.",
        "Two of _MONAI_Yes are two, e.g. this one!",
        "Is a link with words a word?",
        "An item is one sentence",
        "Dice is 0.9 of 1.0.",
        "Then the next",
    ]


def test_the_counter_counts():
    assert count_words("It moves `x` by 0.5 voxels — and stops (really), at https://a.b/c.") == 11
    assert long_sentences("Short. " + "Word " * 25 + ".\n\n| " + "word " * 99 + "|\n") == {}
    assert list(long_sentences("Short. " + "Word " * 26 + ".").values()) == [26]


def test_riddles_old_names_and_dead_links_are_found():
    page = "A film that is turned back, [in the\npose](no.md) of `--views`. ![It](../tests) [is](http://a.b)."
    assert len(matches(RIDDLES, " ".join(prose(page)))) == 2
    assert len(matches(OLD_NAMES, page)) == 1
    assert dead_links(page, ROOT / "docs") == ["no.md"]


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_no_sentence_is_too_long(page):
    assert long_sentences(page.read_text()) == {}


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_no_riddles(page):
    assert matches(RIDDLES, " ".join(prose(page.read_text()))) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=identify)
def test_no_old_names(page):
    assert matches(OLD_NAMES, page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_links_lead_somewhere(page):
    assert dead_links(page.read_text(), page.parent) == []


def test_every_term_of_the_glossary_is_used():
    used = " ".join(page.read_text() for page in PAGES if page != GLOSSARY).lower().replace("`", "")
    used = " ".join(used.split())
    assert [term for term in glossary() if term not in used] == []


def test_the_glossary_is_sorted_and_its_lines_are_short():
    terms, meanings = list(glossary()), list(glossary().values())
    assert len(terms) > 30 and terms == sorted(terms)
    assert [meaning for meaning in meanings if max(map(count_words, sentences(meaning))) > MOST_WORDS] == []


@pytest.mark.parametrize("page", SOLD, ids=identify)
def test_bold_words_are_in_the_glossary_and_bold_where_they_are_first_used(page):
    assert used_before_defined(page.read_text(), glossary()) == []


def test_a_word_that_is_used_before_it_is_bold_is_found():
    page = "# TPS\n\nA **frame** of TPS. **TPS**/2, **TPS/2**, **odd** and **1.0**.\n"
    assert used_before_defined(page, {"frame", "tps", "tps/2"}) == ["TPS", "odd"]


@pytest.mark.parametrize("page", SOLD[1:], ids=identify)
def test_hashes_of_weights_are_those_of_the_files(page):
    told = dict(re.findall(r"^\| `(\S+\.pt)` .*\| `([0-9a-f]{64})` \|$", page.read_text(), re.M))
    models = page.parents[1] / "models"
    files = {str(path.relative_to(models)): hashlib.sha256(path.read_bytes()).hexdigest() for path in models.rglob("*.pt")}
    assert told == files


def test_readme_keeps_the_commands_that_ci_extracts():
    text = (ROOT / "README.md").read_text()
    blocks = dict(re.findall(r"^<!-- (main|test) -->\n```\n(.*?)\n```$", text, re.S | re.M))
    assert set(blocks) == {"main", "test"} and text.count("<!-- ") == 2
    assert "--bundle_root bundles/cxr_lung_segmentation" in blocks["main"] and blocks["main"].endswith("--workflow_type infer")
    assert "-m pytest" in blocks["test"] and "--cov-fail-under 95" in blocks["test"]
