"""The configuration of a training: tables of a TOML file, each a dataclass of the room that uses it.

    name = "colour"          # of the run and its weights
    start = ""               # weights file to start from, relative to the repository; empty: fresh weights
    [data]                   feed.Data
    [noise]                  model = "gaussian" and its parameters, sigma = 25 (mixture.from_table)
    [network]                network.Architecture
    [objective]              objectives.Settings
    [optimisation]           optimisation.Optimisation
    [machine]                machine.Machine

A file may end in [[stages]], each of them tables with what is different in that stage; every stage is a run that starts from
the weights of the one before. All but the last are called NAME-1, NAME-2, and so on.
"""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from n2s_utils.cli import InputError
from n2s_utils.feed import Data
from n2s_utils.machine import Machine
from n2s_utils.mixture import Source, from_table
from n2s_utils.network import Architecture
from n2s_utils.objectives import Settings
from n2s_utils.optimisation import Optimisation

TABLES: dict[str, type] = {
    "data": Data,
    "network": Architecture,
    "objective": Settings,
    "optimisation": Optimisation,
    "machine": Machine,
}


@dataclass(frozen=True)
class Config:
    """What a run is."""

    name: str
    objective: Settings
    optimisation: Optimisation
    noise: Source
    data: Data = field(default_factory=Data)
    network: Architecture = field(default_factory=Architecture)
    machine: Machine = field(default_factory=Machine)
    start: str = ""

    def __post_init__(self):
        if Path(self.name).name != self.name or self.name in ("", ".."):
            raise InputError(f"name = {self.name!r}: give a file name without folders")

    def tables(self) -> dict[str, Any]:
        """As a configuration file has it, with every field."""
        values = dataclasses.asdict(self)
        return values | {"noise": {"model": self.noise.name} | self.noise.parameters}


def from_tables(tables: dict[str, Any]) -> Config:
    """The configuration in the tables of a file; raises InputError naming a field that is missing, unknown or of a wrong type."""
    known = [f.name for f in dataclasses.fields(Config)]
    for name in tables:
        if name not in known:
            raise InputError(f"unknown table or field {name!r}; known: {', '.join(known)}")
    if not isinstance(tables.get("name"), str):
        raise InputError("field 'name' is missing, or no text")
    model = _table(tables, "noise")
    values = {name: _typed(kind, name, _table(tables, name)) for name, kind in TABLES.items()}
    chosen = {key: _noise_value(key, value) for key, value in model.items()}
    return Config(name=tables["name"], start=_checked("start", tables.get("start", ""), str), noise=from_table(chosen), **values)


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(tables.get(name, {}), dict):
        raise InputError(f"{name} = {tables[name]!r}: give a table, [{name}]")
    return tables.get(name, {})


def _typed(kind: type, section: str, table: dict[str, Any]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in table:
        if name not in fields:
            raise InputError(f"[{section}]: unknown field {name!r}; known: {', '.join(fields)}")
    for name, f in fields.items():
        if f.default is dataclasses.MISSING and name not in table:
            raise InputError(f"[{section}]: field {name!r} is missing")
    return kind(**{name: _checked(f"[{section}] {name}", value, fields[name].type) for name, value in table.items()})


def _noise_value(key: str, value: Any) -> Any:
    if isinstance(value, list):  # a range
        return [_checked(f"[noise] {key}", end, float) for end in value]
    return _checked(f"[noise] {key}", value, str if key == "model" else float)


def _checked(name: str, value: Any, kind: Any) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{name} = {value!r}: give a value of type {kind.__name__}")
    return value


def merged(tables: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`tables` with the fields of `changes`, table by table. A length given in one unit replaces that in the other, and a
    noise that names its model the whole of [noise]."""
    result = dict(tables)
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(name), dict) and "model" not in value:
            length = {"crops", "minutes"}
            replaced = length if length & value.keys() else set()
            result[name] = {key: old for key, old in result[name].items() if key not in replaced} | value
        else:
            result[name] = value
    return result


def read_stages(path: str | Path, changes: dict[str, Any] | None = None) -> list[Config]:
    """The configurations in a TOML file, one a stage, with `changes` to the tables of each.

    The `start` of a stage but the first is the name of the one before, whose weights lie beside. Raises InputError naming the
    file and the bad field.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: no readable configuration file ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error})") from None
    stages = tables.pop("stages", [{}])
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise InputError(f"{path}: stages: give one table [[stages]] for each, or leave them out")
    configs: list[Config] = []
    for number, stage in enumerate(stages, 1):
        own = merged(merged(tables, stage), changes or {})
        try:
            config = from_tables(own)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if configs:
            config = dataclasses.replace(config, start=configs[-1].name)
        if number < len(stages):
            config = dataclasses.replace(config, name=f"{config.name}-{number}")
        configs.append(config)
    return configs


def parse_change(text: str) -> dict[str, Any]:
    """TABLE.KEY=VALUE as tables, VALUE in TOML, or a word; the table may be left out where one only has that field."""
    place, equals, value = text.partition("=")
    table, dot, key = place.rpartition(".")
    if not equals:
        raise InputError(f"{text!r}: give a change as TABLE.KEY=VALUE")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    if dot:
        return {table: {key: parsed}}
    if key in ("name", "start"):
        return {key: parsed}
    owners = [name for name, kind in TABLES.items() if key in {f.name for f in dataclasses.fields(kind)}]
    if len(owners) != 1:
        raise InputError(f"{text!r}: unknown field {key!r}; give TABLE.KEY=VALUE, TABLE one of noise, {', '.join(TABLES)}")
    return {owners[0]: {key: parsed}}


def differences(saved: dict[str, Any], config: Config) -> list[str]:
    """The fields, as TABLE.KEY, in which the tables of an earlier run are another run than `config`: all but [machine] and the
    place of the start. A field that the earlier run did not know had its default.
    """
    mine = config.tables()
    try:
        theirs = from_tables({name: table for name, table in saved.items() if name != "machine"}).tables()
    except InputError as error:
        return [str(error)]
    for tables in (mine, theirs):
        tables.pop("machine"), tables.pop("start")
    found: list[tuple[str, str]] = []
    for table, value in mine.items():
        if not isinstance(value, dict):
            found += [(table, "")] * (value != theirs[table])
            continue
        found += [(table, key) for key in value.keys() | theirs[table].keys() if value.get(key) != theirs[table].get(key)]
    return sorted(f"{table}.{key}".rstrip(".") for table, key in found)
