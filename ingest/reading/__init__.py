"""Files of any archive, and what they hold: rasters, pictures, class maps; places, names and keys."""
