"""Parquet files as analysts have them: `make FOLDER` writes some, `query FOLDER` prints what queries find."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

ROWS = 50_000


def make(folder):
    for year in (2025, 2026):
        part = folder / f"year={year}"
        part.mkdir()
        numbers = range(ROWS)
        table = pa.table({
            "id": pa.array(numbers),
            "label": pa.array([f"class {n * 7919 % 100}" for n in numbers]).dictionary_encode(),
            "score": pa.array([(n * 31 % 1009) / 7 for n in numbers], pa.float32()),
        })
        pq.write_table(table, part / "part-0.parquet", row_group_size=5_000, compression="snappy")


def query(folder):
    data = ds.dataset(folder, partitioning="hive")
    print("rows", data.count_rows())
    found = data.to_table(columns=["id", "score"], filter=(pc.field("label") == "class 7") & (pc.field("year") == 2026))
    print("class 7", found.num_rows, pc.sum(found["id"]).as_py(), round(pc.max(found["score"]).as_py(), 4))
    groups = data.to_table().group_by("label").aggregate([("score", "mean")])
    print("groups", groups.num_rows, round(pc.sum(groups["score_mean"]).as_py(), 3))
    path = folder / "year=2025" / "part-0.parquet"
    for memory_map in (False, True):
        part = pq.ParquetFile(path, memory_map=memory_map)
        print("row group 3", part.num_row_groups, pc.sum(part.read_row_group(3)["id"]).as_py())
    print("the same", pq.read_table(path, memory_map=True).equals(pq.read_table(path)))


{"make": make, "query": query}[sys.argv[1]](Path(sys.argv[2]))
