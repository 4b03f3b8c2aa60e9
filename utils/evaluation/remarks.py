"""What is to be said of the images that were compared: nothing of it is mended."""

from utils.errors import name_list
from utils.evaluation.distribution import ALL_IMAGES, FD_FACTOR, Comparison, Plan
from utils.evaluation.extract import Facts, FeatureSet, Reader, shared_contents
from utils.evaluation.features import FeatureNetwork
from utils.evaluation.image_folder import ImageFolder

SIZES_SHOWN = 3
BROKEN_SHOWN = 3
FEW_OF_A_CLASS = 50  # images: figures of fewer say next to nothing
UNEVEN = 0.1  # of a class's share in REAL: a larger difference is said


def remarks_on_images(
    real: ImageFolder,
    generated: ImageFolder,
    real_set: FeatureSet,
    generated_set: FeatureSet,
    reader: Reader,
) -> list[str]:
    """Broken files, mixed sizes, grey against colour, the same files on both sides."""
    remarks = []
    for folder, found in ((real, real_set), (generated, generated_set)):
        remarks += _broken(folder.role, found.facts)
        remarks += _mixed_sizes(folder.role, found.facts, reader)
    remarks += _different_sizes(real_set.facts, generated_set.facts, reader)
    remarks += _grey_against_colour(real_set, generated_set)
    same = shared_contents(real_set, generated_set)
    if same:
        remarks.append(
            f"{same:,} of the {len(generated_set.digests):,} files compared of GENERATED are, byte "
            f"for byte, files of REAL"
        )
    return remarks


def _broken(role: str, facts: Facts) -> list[str]:
    if not facts.broken:
        return []
    names = [f"{name} ({why})" for name, why in facts.broken.items()]
    return [
        f"{role}: {len(names):,} images cannot be read and are left out: "
        f"{name_list(names, BROKEN_SHOWN)}"
    ]


def _mixed_sizes(role: str, facts: Facts, reader: Reader) -> list[str]:
    if len(facts.sizes) < 2:
        return []
    if reader.image_size is not None:
        what = "each is fitted to one size, as asked"
    else:
        what = (
            "each is compared as it is, resized whole to the network's input; --image_size fits "
            "them to one size as training does"
        )
    return [
        f"{role}: the images have {len(facts.sizes):,} different sizes ({_sizes(facts)}); {what}"
    ]


def _different_sizes(real: Facts, generated: Facts, reader: Reader) -> list[str]:
    if reader.image_size is not None or not real.sizes or not generated.sizes:
        return []
    if (
        len(real.sizes) > 1
        or len(generated.sizes) > 1
        or real.sizes.keys() == generated.sizes.keys()
    ):
        return []
    return [
        f"REAL has images of {_sizes(real)}, GENERATED of {_sizes(generated)}: sharpness counts in "
        f"the figures; --image_size fits both to one size as training does"
    ]


def _sizes(facts: Facts) -> str:
    """ "28x28" or "3 of 28x28, 1 of 64x64, ...": height first, the most frequent first."""
    common = facts.sizes.most_common(SIZES_SHOWN)
    if len(facts.sizes) == 1:
        ((height, width), _) = common[0]
        return f"{height}x{width}"
    parts = [f"{count:,} of {height}x{width}" for (height, width), count in common]
    more = ", ..." if len(facts.sizes) > SIZES_SHOWN else ""
    return ", ".join(parts) + more


def _grey_against_colour(real: FeatureSet, generated: FeatureSet) -> list[str]:
    """Where one side is all grey and the other is not."""
    counts = [(found.facts.grey, len(found.places)) for found in (real, generated)]
    all_grey = [grey == count for grey, count in counts]
    if all_grey[0] == all_grey[1] or min(count for _, count in counts) == 0:
        return []
    parts = []
    for role, (grey, count) in zip(("REAL", "GENERATED"), counts, strict=True):
        parts.append(f"{grey:,} of {count:,} images of {role} are grey")
    return [f"grey against colour: {', '.join(parts)}; the figures count that as a difference"]


def remarks_on_numbers(
    real: ImageFolder,
    generated: ImageFolder,
    plan: Plan,
    found: Comparison,
    network: FeatureNetwork,
) -> list[str]:
    """Too few images for a figure, fewer than planned, a floor of another size."""
    remarks = []
    figures = found.figures
    if plan.wanted != ALL_IMAGES and figures.n < plan.wanted:
        remarks.append(
            f"{figures.n:,} images of each folder are compared instead of {plan.wanted:,}, since "
            f"some cannot be read"
        )
    needed = FD_FACTOR * network.dimension
    fewest = min(figures.n, figures.n_real)
    if fewest < needed:
        remarks.append(
            f"{network.fd_name} from {fewest:,} images is too high by an amount that depends on "
            f"their number: it needs {needed:,} ({FD_FACTOR} x {network.dimension:,}) or more; "
            f"compare it only with others of the same n, or read {network.kid_name}, which has no "
            f"such bias"
        )
    if found.floor is None:
        remarks.append("no floor: REAL has too few images for two halves")
    elif found.floor.n < figures.n_real:
        remarks.append(
            f"the floor is between halves of {found.floor.n:,} images, the figures are from "
            f"{figures.n_real:,}: a floor of so many would have a lower {network.fd_name}; without "
            f"--num_compared both have one n"
        )
    remarks += _few_of_a_class(found, network, needed)
    remarks += _uneven_classes(real, generated)
    return remarks


def _few_of_a_class(found: Comparison, network: FeatureNetwork, fd_needs: int) -> list[str]:
    counts = {name: each.images for name, each in found.per_class.items()}
    if not counts or min(counts.values()) >= FEW_OF_A_CLASS:
        return []
    smallest = min(counts, key=lambda name: counts[name])
    return [
        f"the figures per class say little: {smallest} has {counts[smallest]:,} images compared; "
        f"{FEW_OF_A_CLASS} of each class are the least to read anything from, {fd_needs:,} for "
        f"{network.fd_name}"
    ]


def _uneven_classes(real: ImageFolder, generated: ImageFolder) -> list[str]:
    """Classes that GENERATED has in another proportion: the figures count that as a difference."""
    if not real.class_names or real.class_names != generated.class_names:
        return []
    ours, theirs = real.class_counts(), generated.class_counts()
    uneven = []
    for name in real.class_names:
        share = ours[name] / len(real)
        other = theirs[name] / len(generated)
        is_rounding = abs(theirs[name] - share * len(generated)) <= 1
        if abs(other - share) > UNEVEN * share and not is_rounding:
            uneven.append(f"{name} {share:.1%} and {other:.1%}")
    if not uneven:
        return []
    return [
        f"the classes have other proportions in REAL and GENERATED, which the figures count as a "
        f"difference: {name_list(uneven, 3)}"
    ]
