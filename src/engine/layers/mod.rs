//! What the families are built of. A family's file says which of these it has and what its tensors are called;
//! none of them multiplies matrices by hand: every product with weights goes through [`matrix::Matrix`].

pub mod attention;
pub mod bias;
pub mod dense;
pub mod embedding;
pub mod feed_forward;
pub mod matrix;
pub mod norm;
pub mod rotary;
