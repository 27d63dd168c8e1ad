"""Sentinel-2 products of whole tiles: what each kind of product says of itself (`safe`, `cog`, `eopf`), the grid that
its rasters make (`model`), how they are read (`raster`), and how they are cut into patches (`cutting`)."""
