"""The words by which PyTorch programs speak of training."""

from __future__ import annotations

import re


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set: a long list of names in few lines."""
    return frozenset(text.split())


#: A function without any of these words, and that calls none with them, is not followed:
#: it can neither clear a gradient nor cut a graph. Plain words: searching them one after
#: the other takes a twentieth of the time that one pattern of them all does.
INTERESTING = frozenset(
    (
        *("backward", "zero_grad", ".grad", "grad(", "clip_", "unscale", "scaler", "autocast"),
        *(
            "no_grad",
            "inference_mode",
            "grad_enabled",
            "eval(",
            "train(",
            "training",
            "requires_grad",
        ),
        *(
            "step",
            "optim",
            "Optim",
            "sched",
            "Sched",
            "detach",
            "item(",
            ".data",
            "numpy",
            "tolist",
        ),
        *("float(", "oftmax", "igmoid", "CrossEntropy", "cross_entropy", "nll_loss", "NLLLoss"),
        *(
            "BCE",
            "binary_cross",
            "loss",
            "Loss",
            "criterion",
            "ropout",
            "state_dict",
            "save",
            "load",
        ),
        *(
            "checkpoint",
            "Loader",
            "Sampler",
            "set_epoch",
            "seed",
            "Accelerator",
            "Fabric",
            "retain_graph",
        ),
        *("deepcopy", "parameters(", "worker", "forward", "yield", "nn."),
        *("default_rng", "RandomState", "Random(", "Generator(", "TensorDataset"),
    )
)

OPTIMIZER_NAME = re.compile(
    r"(?:^|[._])(?:optim(?:izer)?s?|opt)(?:$|[._\d]|\[)|(?:^|[._a-z])(?:[oO]ptimi[sz]ers?)(?:$|[._A-Z\d])"
    r"|(?:^|[._])optim(?:izer)?[A-Z_\d]\w*$|(?:^|[._])\w+_(?:optim(?:izer)?|opt)s?$|(?:^|[._])opt[A-Z]\w?$"
    r"|(?:^|[._])optimi[sz]er\w*$"
)
SCHEDULER_NAME = re.compile(
    r"sched(?:uler)?s?\b|sched(?:uler)?(?:$|[._A-Z\d])|(?:^|[._])lr_sched", re.IGNORECASE
)
MODEL_NAME = re.compile(
    r"(?:^|[._])(?:model|net|network|module|classifier|encoder|decoder|generator|discriminator"
    r"|critic|actor|policy|backbone|head|student|teacher|netG|netD|gpt|vae|unet)\w*$",
    re.IGNORECASE,
)
LOSS_NAME = re.compile(r"(?:^|[._])\w*loss\w*$", re.IGNORECASE)
SCALER_NAME = re.compile(r"(?:^|[._])(?:grad_?|loss_?|amp_?)?scaler\w*$", re.IGNORECASE)
CRITERION_NAME = re.compile(
    r"(?:^|[._])\w*(?:criterion|loss_?(?:fn|func|function)?|crit)\w*$", re.IGNORECASE
)

#: Class names, wherever they are imported from, that are optimizers.
OPTIMIZER_CLASS = re.compile(
    r"^(?:\w*Adam\w*|\w*SGD\w*|RMSprop\w*|Adagrad\w*|Adadelta|Adafactor|LBFGS|Rprop|ASGD|Lion\w*"
    r"|LAMB|Lamb|LARS|Muon|Shampoo|SOAP|Ranger\w*|NovoGrad|FusedLAMB|\w*Optimizer|Optimizer\w*)$"
)
