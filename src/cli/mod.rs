//! The commands, one small file each.

pub mod submit;
