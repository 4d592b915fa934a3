//! The screen as text, in windows of several sizes.
