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
]
RIDDLES = [
    r"\bin the pose of\b",
    r"\bin eight (views|poses) around\b",
    r"\basked in\b",
    r"\bviews?\b",
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
    """A sentence ends with its block, or at a full stop, question mark or exclamation mark before a space and a new beginning."""
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
    assert count_words(" ".join(["word"] * 26) + ".") == 26


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_no_sentence_is_too_long(page):
    long = {sentence: count_words(sentence) for sentence in sentences(page.read_text())}
    assert {sentence: count for sentence, count in long.items() if count > MOST_WORDS} == {}


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_no_riddles(page):
    text = " ".join(prose(page.read_text()))
    assert {riddle: found for riddle in RIDDLES if (found := re.findall(rf".{{0,40}}(?:{riddle}).{{0,40}}", text, re.I))} == {}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=identify)
def test_no_old_names(page):
    text = page.read_text()
    assert {name: found for name in OLD_NAMES if (found := re.findall(rf".*(?:{name}).*", text))} == {}


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_links_lead_somewhere(page):
    links = re.findall(r"\[[^\]]*\]\(([^)#\s]+)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


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
    text = re.sub(r"^#.*|^```.*?^```|\]\([^)]*\)|^!\[.*", "", page.read_text(), flags=re.S | re.M)
    text = re.sub(r"\s+", " ", text)
    bold = [term for term in re.findall(r"\*\*(.+?)\*\*", text) if not re.match(r"[\d.]+$", term)]
    assert [term for term in bold if term.lower() not in glossary()] == []
    first = {term: re.search(rf"(\*\*)?(?<![\w/]){re.escape(term)}(?![\w/])", text, re.I) for term in bold}
    assert [term for term, found in first.items() if found[1] is None] == []


@pytest.mark.parametrize("page", SOLD[1:], ids=identify)
def test_hashes_of_weights_are_those_of_the_files(page):
    told = dict(re.findall(r"^\| `(\S+\.pt)` .*\| `([0-9a-f]{64})` \|$", page.read_text(), re.M))
    models = page.parents[1] / "models"
    files = {str(path.relative_to(models)): hashlib.sha256(path.read_bytes()).hexdigest() for path in models.rglob("*.pt")}
    assert told == files


def test_readme_keeps_the_commands_that_ci_extracts():
    text = (ROOT / "README.md").read_text()
    blocks = dict(re.findall(r"^<!-- (main|test) -->\n```\n(.*?)^```", text, re.S | re.M))
    assert set(blocks) == {"main", "test"} and text.count("<!-- ") == 2
    assert (
        blocks["main"].rstrip().endswith("--workflow_type infer")
        and "--bundle_root bundles/cxr_lung_segmentation" in blocks["main"]
    )
    assert blocks["test"].rstrip().endswith("-m pytest")
