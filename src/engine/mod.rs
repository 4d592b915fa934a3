//! Text in, vectors out. The only module that names Candle.
