//! What each kind of thread may ask of the kernel: one table for each, made of groups.

pub(crate) mod cell;
mod group;
pub(crate) mod supervisor;
