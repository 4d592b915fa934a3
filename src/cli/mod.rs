//! The commands, one small file each.

pub mod embed;
pub mod submit;
