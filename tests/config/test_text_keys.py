"""Keys that take text take the text that was written, from `--set` and from recipe files; all others take YAML."""

import pytest

from tlkeras.config.recipe import load_recipe, parse_overrides, recipe_to_yaml
from tlkeras.errors import RecipeError

FILE = "data: {source: photos, domain: site}\nbackbone: {name: tiny, weights: none}\n"
ACROSS = "domain_adaptation: {source: a, target: b}\n"
LABELS = "data:\n  source: photos\n  separator: %s\nbackbone: {name: tiny, weights: none}\n"


@pytest.fixture
def mine(tmp_path):
    def write(text):
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return write


def get(recipe, key):
    for part in key.split("."):
        recipe = recipe[part] if isinstance(recipe, dict) else getattr(recipe, part)
    return recipe


OVERRIDES = [
    ("data.source=2024", "2024"),
    ("data.source=007", "007"),
    ("data.source=1e3", "1e3"),
    ("data.source=1.50", "1.50"),
    ("data.source=yes", "yes"),
    ("data.source=true", "true"),
    ("data.source=null", "null"),
    ("data.source=~", "~"),
    ("data.source=.nan", ".nan"),
    ("data.source=my photos #1", "my photos #1"),
    ("data.source=#1", "#1"),
    ("data.source=a: b", "a: b"),
    ("data.source=a:", "a:"),
    ("data.source=- x", "- x"),
    ("data.source=*.csv", "*.csv"),
    ("data.source=&a b", "&a b"),
    ("data.source=!x y", "!x y"),
    ("data.source=@home", "@home"),
    ("data.source=%x", "%x"),
    ("data.source=`x`", "`x`"),
    ("data.source=[a, b]", "[a, b]"),
    ("data.source={a: b}", "{a: b}"),
    ("data.source=C:\\photos\\new", "C:\\photos\\new"),
    ("data.source=x=y", "x=y"),
    ("data.source=it's", "it's"),
    ("data.source='tis", "'tis"),
    ('data.source="2024"', "2024"),
    ("data.source='2024'", "2024"),
    ('data.source="a" and "b"', '"a" and "b"'),
    ("data.source = photos", "photos"),
    ("data.label=2024", "2024"),
    ("data.label=1.0", "1.0"),
    ("data.label=null", None),
    ("data.label=", None),
    ("data.label=None", "None"),
    ("data.weight=2024", "2024"),
    ("data.group=007", "007"),
    ("data.separator=|", "|"),
    ("data.separator=>", ">"),
    ("data.separator= ", " "),
    ("data.separator=  ", "  "),
    ("data.separator=\t", "\t"),
    ("data.separator=,", ","),
    ("data.separator=, ", ", "),
    ("data.separator=;", ";"),
    ("data.separator=:", ":"),
    ("data.separator=#", "#"),
    ("data.separator=-", "-"),
    ("data.separator=&", "&"),
    ("data.separator='", "'"),
    ('data.separator="', '"'),
    ("data.separator='|'", "|"),
    ("data.separator=0", "0"),
    ("data.stratify=2024", ("2024",)),
    ("data.stratify=[2024, 007, null, no]", ("2024", "007", "null", "no")),
    ("data.stratify=a: b", ("a: b",)),
    ("data.stratify=null", None),
    ("domain_adaptation.source=2019", ("2019",)),
    ("domain_adaptation.source=[2019, 2020]", ("2019", "2020")),
    ("domain_adaptation.target=true", ("true",)),
    ("domain_adaptation.target=a b", ("a b",)),
    ("name=2024", "2024"),
    ("cache.root=2024", "2024"),
    ("data.tasks={shape: {column: 2024}, colour: {column: no}}", {"shape": "2024", "colour": "no"}),
    ("data.seed=7", 7),
    ("backbone.size=64", 64),
    ("features.taps=[1, block2]", (1, "block2")),
    ("features.cut=3", 3),
]


@pytest.mark.parametrize(("assignment", "value"), OVERRIDES, ids=[text for text, _ in OVERRIDES])
def test_overrides(mine, assignment, value):
    key = assignment.partition("=")[0].strip()
    file = FILE + ACROSS if key.startswith("domain_adaptation") else FILE
    recipe = load_recipe(mine(file), parse_overrides([assignment]))
    found = get(recipe, key)
    if key == "data.tasks":
        found = {name: task.column for name, task in found.items()}
    assert found == value and type(found) is type(value)
    assert load_recipe(mine(recipe_to_yaml(recipe))) == recipe  # a run keeps it


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        (FILE.replace("photos", "2024"), "data.source", "2024"),
        (FILE.replace("photos", "007"), "data.source", "007"),
        (FILE.replace("photos", "true"), "data.source", "true"),
        (FILE.replace("photos", "null"), "data.source", "null"),
        (FILE.replace("site", "2024"), "data.domain", "2024"),
        (FILE.replace("site", "null"), "data.domain", None),
        (FILE.replace("site", ""), "data.domain", None),
        (FILE + ACROSS.replace("source: a", "source: 2019"), "domain_adaptation.source", ("2019",)),
        (FILE + ACROSS.replace("source: a", "source: [2019, 2020]"), "domain_adaptation.source", ("2019", "2020")),
        (LABELS % "|", "data.separator", "|"),
        (LABELS % ">", "data.separator", ">"),
        (LABELS % "0", "data.separator", "0"),
        (LABELS % "null", "data.separator", None),
        (FILE + "finetuning: {stages: [{name: 1, unfreeze: 0, epochs: 1}]}", "finetuning.stages.0.name", "1"),
        (FILE + "tuning: {space: {data.label: [2024, 007]}}", "tuning.space.data.label", ("2024", "007")),
        (FILE + "tuning: {space: {training.seed: [1, 2]}}", "tuning.space.training.seed", (1, 2)),
        (FILE + "training: {seed: 12}", "training.seed", 12),
    ],
)
def test_recipe_files(mine, text, key, value):
    recipe = load_recipe(mine(text))
    if key.startswith("tuning"):
        found = recipe.tuning.space[key.removeprefix("tuning.space.")].values
    elif key == "finetuning.stages.0.name":
        found = recipe.finetuning.stages[0].name
    else:
        found = get(recipe, key)
    assert found == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.source=", "data.source: string should have at least 1 character"),
        ("data.seed=a: b", "data.seed: input should be a valid integer"),
        ("data.stratify=[2024", "is not valid YAML"),
        ("data.sorce=2024", "unknown key 'data.sorce'. Did you mean 'source'"),
        ("data.separator=''", "data.separator: string should have at least 1 character"),
    ],
)
def test_what_is_refused(mine, assignment, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(mine(FILE), parse_overrides([assignment]))
