"""The commands of this room, one a file: `preview`, `evaluate`, `embed`, `report`."""
