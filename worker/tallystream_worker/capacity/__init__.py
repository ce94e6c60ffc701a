"""States what counting costs: measured constants (`costs`), and the server memory of each rule (`footprint`)."""
