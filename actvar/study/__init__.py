"""The paper's tables as a study that anyone can rerun: rows, cells, measurements, claims and the page about them."""
