//! `vmm doctor`: what this host can do, and what to mend.
pub(crate) fn run(_: &crate::args::Doctor) -> anyhow::Result<u8> { Ok(0) }
