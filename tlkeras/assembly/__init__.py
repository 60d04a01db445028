"""The only interpreter of a recipe: from its sections to the objects of the other rooms."""

from tlkeras.assembly.data import (
    cache_root,
    check_recipe_feed,
    divide,
    list_licences,
    locate_source,
    make_recipe_policy,
    open_cache,
    picture_facts,
    picture_size,
    read_examples,
    read_other_examples,
    read_source,
    take_pictures,
)
from tlkeras.assembly.depths import extract_depths
from tlkeras.assembly.distribution import make_distribution
from tlkeras.assembly.domains import TARGET, adapt_heads, is_target, list_asked
from tlkeras.assembly.features import (
    KEPT_PRECISION,
    PLAIN_VIEWS,
    build_prefix,
    choose_taps,
    count_features,
    count_lacking,
    extract_features,
    learn_codebooks,
    list_kept,
    measure_parts,
)
from tlkeras.assembly.finetuning import (
    make_loop,
    make_observer,
    make_weighting,
    supply_pictures,
    supply_rows,
    weigh_sides,
)
from tlkeras.assembly.mapping import make_recipe_head
from tlkeras.assembly.stages import make_schedule, plan_finetuning, plan_recipe

__all__ = [
    "KEPT_PRECISION",
    "PLAIN_VIEWS",
    "TARGET",
    "adapt_heads",
    "build_prefix",
    "cache_root",
    "check_recipe_feed",
    "choose_taps",
    "count_features",
    "count_lacking",
    "divide",
    "extract_depths",
    "extract_features",
    "is_target",
    "learn_codebooks",
    "list_asked",
    "list_kept",
    "list_licences",
    "locate_source",
    "make_distribution",
    "make_loop",
    "make_observer",
    "make_recipe_head",
    "make_recipe_policy",
    "make_schedule",
    "make_weighting",
    "measure_parts",
    "open_cache",
    "picture_facts",
    "picture_size",
    "plan_finetuning",
    "plan_recipe",
    "read_examples",
    "read_other_examples",
    "read_source",
    "supply_pictures",
    "supply_rows",
    "take_pictures",
    "weigh_sides",
]
