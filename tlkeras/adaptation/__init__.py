"""Adaptation from a labelled source domain to an unlabelled target domain.

What programs of your own need is here by name. Importing this package imports nothing else; using a name of it does.
"""

from tlkeras.lazy_tensorflow import export_lazily

_MODULES = {
    "AdaptationOptions": "adversarial",
    "Coral": "alignment",
    "DomainAdaptedHead": "domain_head",
    "GaussianTransport": "alignment",
    "JointDistributionAdaptation": "tca",
    "JointPca": "alignment",
    "SubspaceAlignment": "alignment",
    "TransferComponentAnalysis": "tca",
    "estimate_bbse": "domain_head",
    "estimate_em": "domain_head",
    "reweight_priors": "domain_head",
}
__all__ = list(_MODULES)
__getattr__, __dir__ = export_lazily(__name__, _MODULES)
