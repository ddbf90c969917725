"""Licences of weights, by the names that the Hugging Face Hub has for them."""

from pathlib import Path

# https://huggingface.co/docs/hub/repositories-licenses; a model card calls any other licence `other`, and names it apart
LICENCES = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0
epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unlicense wtfpl zlib
"""


def identifier(licence: str) -> str:
    """Return the Hub's name of `licence`, which may have a remark in brackets; of one that the Hub does not know its name with hyphens."""
    whole = licence.strip().lower().replace(" ", "-")
    bare = whole.partition("-(")[0]
    return bare if bare in LICENCES.split() else whole


def on_card(licence: str | None) -> dict[str, str | None]:
    """Return the fields ``license`` and ``license_name`` of a model card for weights under `licence`, any name; None is not known.

    The Hub takes back a card whose ``license`` is no name of its own.
    """
    name = None if licence is None else identifier(licence)
    is_known = name is None or name in LICENCES.split()
    return {"license": name if is_known else "other", "license_name": None if is_known else name}


def licence_in(*folders: Path) -> str | None:
    """Return the licence that the metadata of a model card (README.md) in one of the `folders` names, or None.

    Of a licence that the Hub calls ``other`` it is the ``license_name`` beside it.
    """
    from huggingface_hub import metadata_load

    for folder in folders:
        card = folder / "README.md"
        try:
            found = (metadata_load(card) or {}) if card.is_file() else {}
            named = found.get("license")
        except Exception:  # an unreadable card does not make the model unusable
            continue
        if named == "other" and found.get("license_name"):
            named = found["license_name"]
        if named:
            return ", ".join(named) if isinstance(named, list) else str(named)
    return None
