"""The only interpreter of a recipe: from its sections to the objects of the other rooms."""

# ruff: noqa: F401  (the names are for the other rooms)
from tlkeras.data.tables import TARGET
from tlkeras.training.builders.data import (
    check_recipe_data_service,
    count_labels,
    describe_origin,
    evaluated_splits,
    find_depth_range,
    image_size,
    list_cells,
    list_cleaned_overrides,
    list_licences,
    make_recipe_policy,
    max_pixels,
    open_cache,
    preprocessing_config,
    read_dataset,
    read_other_dataset,
    read_source,
    split_dataset,
)
from tlkeras.training.builders.experiment import Experiment, check_takes_callbacks, require_plan
from tlkeras.training.builders.features import (
    CACHE_DTYPE,
    PLAIN_VIEWS,
    activations_needed,
    add_orientations,
    add_test_time_views,
    averages_views,
    build_feature_extractor,
    count_cache_misses,
    count_missing_features,
    extract_depths,
    extract_features,
    feature_engine,
    fit_recipe_codebooks,
    fused_widths,
    list_handcrafted_kinds,
    list_kept,
    orientation_views,
    predict_images,
    training_views,
)
from tlkeras.training.builders.finetuning import (
    find_class_factors,
    make_activation_source,
    make_callbacks,
    make_image_source,
    make_network,
    make_split,
    make_trainer,
)
from tlkeras.training.builders.heads import (
    adapt_heads,
    adapts_domains,
    make_linear_head,
    make_recipe_head,
    training_seed,
)
from tlkeras.training.builders.preparation import make_strategy, plan, prepare, validate
from tlkeras.training.builders.variants import locate_source, merge_labels, name_source
