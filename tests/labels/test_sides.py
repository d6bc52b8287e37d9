"""Left and right in the spellings of common atlases: partners of regions, and protocols that cannot be mirrored."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
import torch
from labelled import RECIPE, Ask

from bidsseg.errors import DataError, UsageError
from bidsseg.image.volume import Volume
from bidsseg.labels import Protocol, Region, load_protocol
from bidsseg.learning.cases import Annotation, values_at
from bidsseg.learning.recipe import load_recipe
from bidsseg.learning.synthesis import brightness
from bidsseg.levels.train import train_level
from bidsseg.models.card import Card
from bidsseg.models.library import build, load_model, save_model, save_protocol
from bidsseg.segmentation.predict import segment
from bidsseg.settings import Settings

FREESURFER_STRUCTURES = """Cerebral-Exterior Cerebral-White-Matter Cerebral-Cortex Lateral-Ventricle Inf-Lat-Vent
Cerebellum-Exterior Cerebellum-White-Matter Cerebellum-Cortex Thalamus-unused Thalamus Caudate Putamen Pallidum
Hippocampus Amygdala Insula Operculum Lesion Accumbens-area Substancia-Nigra VentralDC undetermined vessel
choroid-plexus F3orb lOg aOg mOg pOg Stellate Porg Aorg Interior Amygdala-Anterior WM-hypointensities
non-WM-hypointensities F1 hippocampal_fissure CADG-head subiculum fimbria UnsegmentedWhiteMatter AV CeM CL CM LD LGN LP
L-Sg MDl MDm MGN MV(Re) Pc Pf Pt PuA PuI PuL PuM R VA VAmc VLa VLp VM VPL Common-IliacA External-IliacA"""
FREESURFER_SMALL = "CA2_3 alveus CA1 fimbria presubiculum hippocampal_fissure CA4 subiculum fornix"
DESIKAN = """unknown bankssts caudalanteriorcingulate caudalmiddlefrontal corpuscallosum cuneus entorhinal fusiform
inferiorparietal inferiortemporal isthmuscingulate lateraloccipital lateralorbitofrontal lingual medialorbitofrontal
middletemporal parahippocampal paracentral parsopercularis parsorbitalis parstriangularis pericalcarine postcentral
posteriorcingulate precentral precuneus rostralanteriorcingulate rostralmiddlefrontal superiorfrontal superiorparietal
superiortemporal supramarginal frontalpole temporalpole transversetemporal insula"""
DESTRIEUX = """Unknown G_and_S_frontomargin G_and_S_occipital_inf G_and_S_cingul-Mid-Ant G_cuneus G_front_inf-Opercular
G_Ins_lg_and_S_cent_ins G_oc-temp_lat-fusifor G_orbital G_temp_sup-G_T_transv Lat_Fis-ant-Horizont Medial_wall
Pole_occipital S_calcarine S_interm_prim-Jensen S_oc_sup_and_transversal S_orbital_lateral S_orbital_med-olfact
S_suborbital S_temporal_transverse"""
FREESURFER_MIDLINE = """Unknown 3rd-Ventricle 4th-Ventricle Brain-Stem CSF Line-1 ctx-unknown WM-hypointensities
non-WM-hypointensities 5th-Ventricle Optic-Chiasm Corpus_Callosum Cranium Epidermis Conn-Tissue Fornix CC_Posterior
CC_Mid_Posterior CC_Central CC_Mid_Anterior CC_Anterior Voxel-Unchanged Cbm_Vermis_VI Cbm_Vermis_X CSF-ExtraCerebral
Head-ExtraCerebral SUSPICIOUS fmajor fminor Aorta SkinTissue Dura third_ventricle Midbrain Pons SCP Medulla"""
AAL = """Precentral Frontal_Sup Frontal_Sup_Orb Frontal_Mid Frontal_Inf_Oper Rolandic_Oper Supp_Motor_Area Olfactory
Rectus Insula Cingulum_Ant Hippocampus ParaHippocampal Calcarine Lingual Heschl Temporal_Pole_Sup Cerebelum_Crus1
Cerebelum_4_5 Cerebelum_10 Thal_AV Thal_LP Thal_VL ACC_sub N_Acc VTA SN_pc SN_pr Red_N LC"""
AAL_MIDLINE = "Vermis_1_2 Vermis_3 Vermis_10 Raphe_D Raphe_M"
HARVARD_OXFORD = """Cerebral_White_Matter Cerebral_Cortex_ Lateral_Ventricle Thalamus Caudate Putamen Pallidum
Hippocampus Amygdala Accumbens Frontal_Pole Insular_Cortex Superior_Frontal_Gyrus
Juxtapositional_Lobule_Cortex_(formerly_Supplementary_Motor_Cortex) Heschl's_Gyrus_(includes_H1_and_H2)
Middle_Temporal_Gyrus,_temporooccipital_part"""
BRAINCOLOR = """ACgG_anterior_cingulate_gyrus AIns_anterior_insula AnG_angular_gyrus Accumbens_Area Basal_Forebrain
Cun_cuneus Inf_Lat_Vent LiG_lingual_gyrus LOrG_lateral_orbital_gyrus MSFG_superior_frontal_gyrus_medial_segment
OpIFG_opercular_part_of_the_inferior_frontal_gyrus SMC_supplementary_motor_cortex Ventral_DC vessel"""


def protocol(names: Iterable[str], **columns: list[Any]) -> Protocol:
    """Return a protocol with the background and regions with these names."""
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    regions = [Region(i, name, name, "#808080", None, **row) for i, (name, row) in enumerate(
        zip(names, rows or [{}] * len(list(names)), strict=True), 1
    )]  # fmt: skip
    return Protocol("Atlas", (Region(0, "Background", "BG", "#000000", 0), *regions))


def pairs(form: str, *spellings: tuple[str, str], stems: str, blank: str = "_") -> list[tuple[str, str]]:
    """Return the left and the right name of every stem; {} stands for side and stem."""
    names = [stem.replace("_", blank) for stem in stems.split()]
    return [(form.format(one, name), form.format(other, name)) for name in names for one, other in spellings]


FREESURFER = [
    *pairs("{}-{}", ("Left", "Right"), stems=FREESURFER_STRUCTURES),
    *pairs("{}_{}", ("left", "right"), stems=FREESURFER_SMALL),
    *pairs("ctx-{}-{}", ("lh", "rh"), stems=DESIKAN),
    *pairs("wm-{}-{}", ("lh", "rh"), stems=DESIKAN),
    *pairs("ctx-{}-{}", ("lh", "rh"), stems=DESTRIEUX),
    *pairs("ctx_{}_{}", ("lh", "rh"), stems=DESTRIEUX),
    *pairs("wm_{}_{}", ("lh", "rh"), stems=DESTRIEUX),
    *pairs("Cbm_{}_{}", ("Left", "Right"), stems="I_IV V VI CrusI CrusII VIIb VIIIa VIIIb IX X"),
    *pairs("{}_hypothalamus_{}", ("L", "R"), stems="anterior_inferior anterior_superior posterior tubular_inferior"),
    *pairs("{}.{}", ("lh", "rh"), stems="atr cab ccg cst ilf slfp slft unc"),
]
TABLES = {
    "FreeSurfer": (FREESURFER, FREESURFER_MIDLINE.split()),
    "aparc": (pairs("{}.{}", ("lh", "rh"), stems=DESIKAN), []),
    "AAL": (pairs("{1}_{0}", ("L", "R"), stems=AAL), AAL_MIDLINE.split()),
    "Harvard-Oxford": (pairs("{} {}", ("Left", "Right"), stems=HARVARD_OXFORD, blank=" "), ["Brain-Stem"]),
    "DKT": (pairs("{} {}", ("left", "right"), stems=DESIKAN), ["optic chiasm", "cerebellar vermal lobules I-V"]),
    "BrainCOLOR": (
        pairs("{} {}", ("Left", "Right"), stems=BRAINCOLOR, blank=" "),
        ["3rd Ventricle", "Brain Stem", "CSF", "Cerebellar Vermal Lobules VIII-X", "Optic Chiasm"],
    ),
    "multi-modal parcellation": (pairs("{}_{}_ROI", ("L", "R"), stems="V1 MST 4 3b 55b s6-8 R_P_R"), []),
    "both spellings": (pairs("{0[0]}_{0[1]}_{1}_ROI", ("lL", "rR"), stems="V1 V2"), []),
    "tracts": (pairs("{1} {0}", ("L", "R"), stems="Corticospinal_tract Cingulum_(hippocampus)", blank=" "), ["Fornix"]),
    "networks": (pairs("7Networks_{}_{}", ("LH", "RH"), stems="Vis_1 Vis_2 SomMot_1 Default_PFC_4"), []),
    "BIDS": (pairs("hemi-{}_label-{}", ("L", "R"), stems="hippocampus L1"), ["label-brainstem"]),
    "last": (pairs("{1}, {0} hemisphere", ("left", "right"), stems="hippocampus amygdala"), []),
    "brackets": (pairs("{1} ({0})", ("Left", "Right"), stems="hippocampus amygdala"), []),
    "joined": (pairs("{0}{1}", ("Left", "Right"), ("lh", "rh"), stems="Hippocampus"), []),
    "joined, behind": (pairs("{1}{0}", ("Left", "Right"), stems="hippocampus"), []),
    "capitals": (pairs("{1} {0}", ("LEFT", "RIGHT"), stems="HIPPOCAMPUS AMYGDALA"), []),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_region_of_an_atlas_has_its_partner(name: str) -> None:
    paired, midline = TABLES[name]
    names = [left for left, _ in paired] + midline + [right for _, right in paired]
    table = protocol(names)
    expected = {**dict(paired), **{right: left for left, right in paired}}
    found = {r.name: table.regions[p].name for r, p in zip(table.regions, table.partners(), strict=True)}
    assert len(found) == len(names) + 1
    assert found == {name: expected.get(name, name) for name in found}


@pytest.mark.parametrize("name", TABLES)
def test_an_atlas_of_one_side_is_not_mirrored(name: str) -> None:
    for side in (0, 1):
        table = protocol([pair[side] for pair in TABLES[name][0]])
        assert len(table.unpaired) == len(table.regions) - 1
        with pytest.raises(DataError, match=r"no region of the other side is known for .* column partner"):
            table.partners()


@pytest.mark.parametrize("name", [
    "Brightness", "Cleft palate", "Bright left-over", "Leftover", "Commissure between left and right hippocampus",
    "Layer L of cortex", "L1 vertebra", "Lh2", "Frontal", "Ramus R2", "All", "Right-left shunt", "4R", "Upright",
    "Caudate L/R", "Putamen (R + L)", "Vein of Galen", "rhombencephalon", "lhx2 field", "Red nucleus",
])  # fmt: skip
def test_a_region_on_the_midline_is_its_own_partner(name: str) -> None:
    assert protocol([name]).partners() == (0, 1)


def test_case_and_signs_between_words_may_differ() -> None:
    assert protocol(["left_CA2_3", "Right-CA2-3", "ctx"]).partners() == (0, 2, 1, 3)
    assert protocol(["ctx-lh-unknown", "ctx-lh-Unknown", "ctx-rh-Unknown", "ctx-rh-unknown"]).partners() == (
        0, 4, 3, 2, 1,
    )  # fmt: skip


def test_a_name_that_stands_twice_has_no_partner() -> None:
    assert protocol(["Left A", "Right A", "Right A"]).unpaired == ("Left A", "Right A", "Right A")
    assert protocol(["Left-A", "Right_A", "Right A"]).unpaired == ("Left-A", "Right_A", "Right A")


def test_a_region_that_is_not_scored_needs_no_partner() -> None:
    assert protocol(["Left A", "Left B", "Right A"], scored=[True, False, True]).partners() == (0, 3, 2, 1)


# -- columns -----------------------------------------------------------------------------------------------------------


def write(path: Path, *rows: str) -> Path:
    path.write_text("".join("\t".join(row.split("|")) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_column_names_the_partner(tmp_path: Path) -> None:
    """In the subcortical Harvard-Oxford atlas of FSL, one of the two ventricles is misspelled."""
    rows = ["0|Background|n/a", "2|Left Lateral Ventrical|n/a", "5|Left-over|5", "9|Right Lateral Ventricle|2"]
    table = load_protocol(str(write(tmp_path / "seg-Mine_dseg.tsv", "index|name|partner", *rows)))
    assert table.partners() == (0, 3, 2, 1)
    without = [row.rpartition("|")[0] for row in rows]
    plain = load_protocol(str(write(tmp_path / "plain.tsv", "index|name", *without)))
    assert plain.unpaired == ("Left Lateral Ventrical", "Right Lateral Ventricle")
    (tmp_path / "again").mkdir()
    copy = tmp_path / "again" / "seg-Mine_dseg.tsv"
    copy.write_text(table.to_tsv())
    assert load_protocol(str(copy)) == table


def test_a_column_names_the_hemisphere(tmp_path: Path) -> None:
    rows = ["0|Background|n/a", "1|Hippocampus|L", "2|Hippocampus|R", "3|Brain stem|", "4|lh.A|left", "5|rh.A|right"]
    for column in ("hemi", "hemisphere"):
        path = write(tmp_path / f"{column}.tsv", f"index|name|{column}", *rows)
        assert load_protocol(str(path)).partners() == (0, 2, 1, 3, 5, 4)
    one = load_protocol(str(write(tmp_path / "one.tsv", "index|name|hemi", *rows[:2], rows[3])))
    assert one.unpaired == ("Hippocampus",)
    path.write_text(load_protocol(str(path)).to_tsv())
    load_protocol.cache_clear()
    assert load_protocol(str(path)).partners() == (0, 2, 1, 3, 5, 4)


def test_partners_contradict_no_other(tmp_path: Path) -> None:
    rows = ["0|Background|n/a", "1|A|2", "2|B|3", "3|C|2"]
    with pytest.raises(DataError, match="1 has the partner 2, which has 3"):
        load_protocol(str(write(tmp_path / "odd.tsv", "index|name|partner", *rows)))
    absent = load_protocol(str(write(tmp_path / "absent.tsv", "index|name|partner", rows[0], "1|A|7")))
    assert absent.unpaired == ("A",)


# -- what depends on it ------------------------------------------------------------------------------------------------


def test_sides_without_partner_are_synthesised_each_for_itself() -> None:
    means, _ = brightness(
        protocol(["Left A", "Right A", "Left B"]), realistic=False, generator=torch.Generator().manual_seed(0)
    )
    assert means[1] == means[2] != means[3]


def test_mirrored_samples_of_freesurfer_swap_sides() -> None:
    table = protocol([name for pair in FREESURFER for name in pair])
    values = torch.arange(len(table.regions)).view(-1, 1, 1)
    source = torch.stack(torch.meshgrid(*(torch.arange(n) for n in values.shape), indexing="ij"), -1)
    swapped = values_at(Annotation(table, values), source.float(), mirrored=True).flatten().numpy()
    assert np.array_equal(swapped[1:], np.arange(1, len(values)).reshape(-1, 2)[:, ::-1].ravel())


ONE_SIDED = ["0|Background", "1|Left-A", "2|Right-A", "3|Left-B"]


@pytest.fixture
def one_sided(ask: Ask, dataset: tuple[Path, Path], tmp_path: Path) -> Callable[..., Settings]:
    """Return settings of a training on FAST label maps in a custom protocol: columns, rows, and keys of the recipe."""

    def settings(columns: str, *rows: str, more: str = "") -> Settings:
        table = write(tmp_path / "seg-Mine_dseg.tsv", columns, *rows)
        load_protocol.cache_clear()
        heads = f'mirror = {str("mirror" in more).lower()}\nheads = {{ "{table}" = 1.0 }}'
        recipe = RECIPE.replace("heads = { brain = 0.5, FAST = 1.0 }", heads) + more.removeprefix("mirror")
        return replace(ask(recipe, labels={str(table): [dataset[1]]}), dry_run=True)

    return settings


@pytest.mark.parametrize("more", ["", "mirror[spatial]\nflip = 0.0", "[spatial]\nflip = 0.1"])
def test_training_refuses_to_mirror_sides_without_partner(more: str, one_sided: Callable[..., Settings]) -> None:
    message = (
        r"Mine: no region of the other side is known for Left-B, .* column partner .* flip = 0\.0 .* mirror = false"
    )
    with pytest.raises(UsageError, match=message):
        train_level(one_sided("index|name", *ONE_SIDED, more=more))


def test_training_takes_sides_without_partner_that_are_not_mirrored(one_sided: Callable[..., Settings]) -> None:
    """Both recipes reach the end of the preparation."""
    assert train_level(one_sided("index|name", *ONE_SIDED, more="[spatial]\nflip = 0.0"))
    partners = [f"{row}|{cell}" for row, cell in zip(ONE_SIDED, ("n/a", "n/a", "n/a", "3"), strict=True)]
    assert train_level(one_sided("index|name|partner", *partners, more="mirror"))


def test_labels_of_a_part_of_the_head_must_have_partners_too(
    ask: Ask, dataset: tuple[Path, Path], tmp_path: Path
) -> None:
    """If only one hippocampus is annotated, mirroring would put it on the wrong side."""
    part = write(tmp_path / "seg-Part_dseg.tsv", "index|name", "0|Background", "1|Left Hippocampus")
    recipe = RECIPE.replace("{ brain = 0.5, FAST = 1.0 }", "{ FreeSurfer = 1.0 }")
    with pytest.raises(UsageError, match=r"Part: no region of the other side is known for Left Hippocampus"):
        train_level(replace(ask(recipe, labels={str(part): [dataset[1]]}), dry_run=True))


def test_a_recipe_mirrors_if_samples_or_scans_are() -> None:
    assert load_recipe("wholebrain").mirrors and load_recipe("segnet", small=True).mirrors
    assert not load_recipe("neuronet").mirrors and not load_recipe("segnet").mirrors


@pytest.mark.parametrize("right", ["Right-Cerebral-Cortex", "Right-Cortex"])
def test_a_scan_is_segmented_in_its_mirror_image_only_if_every_side_has_a_partner(right: str, tmp_path: Path) -> None:
    """With partners, the mean of both passes is symmetrical; without, the pass is omitted with a note."""
    torch.manual_seed(0)
    names = ["Left-Cerebral-Cortex", right, "Brain-Stem"]
    network = {"name": "subpixel-unet", "coordinates": 0, "widths": [4, 8], "features": 8, "last": 8}
    made = {}
    for mirror in (False, True):
        folder = tmp_path / str(mirror)
        folder.mkdir()
        save_protocol(protocol(names), folder)
        card = Card("random", "", ("T1w",), network, 6.0, ("Atlas",), "", mirror=mirror, folder=folder)
        if not mirror:
            weights = build(card).state_dict()
            weights["heads.Atlas.weight"].normal_()
        save_model(card, weights, folder)
        made[mirror] = load_model(str(folder))
    affine = phantoms.grid(8.0, "RAS", (24, 28, 24))
    head = phantoms.noisy_head(affine, (24, 28, 24))
    scan, mirrored = (Volume(data, affine) for data in (head, head[::-1].copy()))
    straight, both = (segment({"T1w": scan}, made[mirror]) for mirror in (False, True))
    swapped = np.array([0, 2, 1, 3])[segment({"T1w": mirrored}, made[True]).labels["Atlas"][::-1]]
    if right == "Right-Cerebral-Cortex":
        assert both.notes == [] and (swapped == both.labels["Atlas"]).mean() > 0.99
        assert not np.array_equal(both.labels["Atlas"], straight.labels["Atlas"])
    else:
        assert np.array_equal(both.labels["Atlas"], straight.labels["Atlas"])
        (note,) = both.notes
        assert "without the pass over the mirror image" in note and "Left-Cerebral-Cortex, Right-Cortex" in note
