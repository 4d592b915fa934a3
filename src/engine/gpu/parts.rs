//! Parts of a model on its device. Between the products all numbers have 32 bits, whatever the products are computed
//! in: sums over the layers and norms lose nothing, and what leaves the range of 16 bits in one layer does not stay.

use super::place::{Place, Placed};
use crate::engine::LoadError;
use crate::engine::folder;
use crate::engine::layers::feed_forward::{Activation, FeedForward};
use crate::engine::layers::norm;
use crate::engine::layers::rotary::Rotary;
use candle_core::{DType, Result, Tensor};
use candle_nn::ops;

/// A norm of rows of 32-bit numbers.
#[derive(Debug)]
pub struct Norm {
    weight: Tensor,
    /// Only a LayerNorm has it.
    bias: Option<Tensor>,
    epsilon: f32,
}

impl Norm {
    /// Puts a norm on the device.
    ///
    /// # Errors
    /// The device fails or has no room.
    pub fn place(norm: &norm::Norm, place: &Place) -> std::result::Result<Norm, LoadError> {
        let (weight, bias, epsilon) = norm.parts();
        let put = |numbers: &[f32]| place.put(numbers, &[numbers.len()]);
        Ok(Norm {
            weight: put(weight)?,
            bias: bias.map(put).transpose()?,
            epsilon,
        })
    }

    /// The norm of each row, along the last dimension.
    pub fn run(&self, rows: &Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => ops::layer_norm(rows, &self.weight, bias, self.epsilon),
            None => ops::rms_norm(rows, &self.weight, self.epsilon),
        }
    }
}

/// The two products of a layer's second part and what lies between them.
#[derive(Debug)]
pub struct Feed {
    up: Placed,
    gated: bool,
    activation: Activation,
    down: Placed,
}

impl Feed {
    /// The part on its device.
    pub fn new(part: FeedForward) -> Feed {
        Feed {
            up: part.up.placed(),
            gated: part.gated,
            activation: part.activation,
            down: part.down.placed(),
        }
    }

    /// Of rows in the numbers of the place.
    pub fn run(&self, rows: &Tensor) -> Result<Tensor> {
        let wide = self.up.product(rows)?;
        let wide = if self.gated {
            let half = self.up.width() / 2;
            let first = wide.narrow(1, 0, half)?.contiguous()?;
            (activate(&first, self.activation)? * wide.narrow(1, half, half)?)?
        } else {
            activate(&wide, self.activation)?
        };
        self.down.product(&wide)
    }
}

fn activate(rows: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Gelu => rows.gelu_erf(),
        Activation::GeluTanh => rows.gelu(),
        Activation::Silu => rows.silu(),
        Activation::Relu => rows.relu(),
    }
}

/// A Dense module behind the pooling, in 32 bits.
#[derive(Debug)]
pub struct Dense {
    linear: Placed,
    activation: folder::Activation,
}

impl Dense {
    /// The module on its device.
    pub fn new((linear, activation): (Placed, folder::Activation)) -> Dense {
        Dense { linear, activation }
    }

    /// Of a row for each sequence.
    pub fn run(&self, rows: &Tensor) -> Result<Tensor> {
        let rows = self.linear.product(rows)?;
        match self.activation {
            folder::Activation::Identity => Ok(rows),
            folder::Activation::Tanh => rows.tanh(),
            folder::Activation::Relu => rows.relu(),
            folder::Activation::Sigmoid => ops::sigmoid(&rows),
        }
    }
}

/// Cosines and sines by which the halves of heads are turned, a row for each place.
#[derive(Debug)]
pub struct Turns {
    cosines: Tensor,
    sines: Tensor,
}

impl Turns {
    /// Puts the tables on the device.
    ///
    /// # Errors
    /// The device fails or has no room.
    pub fn place(rotary: &Rotary, place: &Place) -> std::result::Result<Turns, LoadError> {
        let (cosines, sines, half) = rotary.tables();
        let put = |numbers: &[f32]| place.put(numbers, &[numbers.len() / half, half]);
        Ok(Turns {
            cosines: put(cosines)?,
            sines: put(sines)?,
        })
    }

    /// The rows for tokens at these places.
    pub fn at(&self, places: &Tensor) -> Result<Turns> {
        Ok(Turns {
            cosines: self.cosines.index_select(places, 0)?,
            sines: self.sines.index_select(places, 0)?,
        })
    }

    /// Turns `heads`, tokens by heads by numbers of a head, in 32 bits; the rows of the tables are those of the tokens.
    pub fn turn(&self, heads: &Tensor) -> Result<Tensor> {
        let heads = heads.unsqueeze(0)?;
        candle_nn::rotary_emb::rope_thd(&heads, &self.cosines, &self.sines)?.squeeze(0)
    }
}

/// The tables by which tokens become rows.
#[derive(Debug)]
pub struct Words {
    words: Tensor,
    positions: Option<Tensor>,
    norm: Option<Norm>,
}

impl Words {
    /// Puts the tables on the device, rows of `width` numbers: the words in the numbers of the place, since they are many.
    ///
    /// # Errors
    /// The device fails or has no room.
    pub fn place(
        (words, positions, norm): (Vec<f32>, Option<Vec<f32>>, Option<norm::Norm>),
        width: usize,
        place: &Place,
    ) -> std::result::Result<Words, LoadError> {
        let count = words.len() / width;
        let positions = positions.map(|rows| place.put(&rows, &[rows.len() / width, width]));
        Ok(Words {
            words: place.put_narrow(words, &[count, width])?,
            positions: positions.transpose()?,
            norm: norm.map(|norm| Norm::place(&norm, place)).transpose()?,
        })
    }

    /// A row of 32-bit numbers for each token. `positions` has the number of its row in the table of positions.
    pub fn run(&self, ids: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let mut rows = self.words.index_select(ids, 0)?.to_dtype(DType::F32)?;
        if let Some(table) = &self.positions {
            rows = (rows + table.index_select(positions, 0)?)?;
        }
        match &self.norm {
            Some(norm) => norm.run(&rows),
            None => Ok(rows),
        }
    }

    /// Tokens in the table of words.
    pub fn count(&self) -> usize {
        self.words.dims()[0]
    }
}

/// What a list of numbers becomes on the device.
pub fn put(numbers: &[u32], place: &Place) -> Result<Tensor> {
    Tensor::from_slice(numbers, numbers.len(), place.device())
}
