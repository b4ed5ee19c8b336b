//! Machines: KVM virtual machines, their cores and their exits.
//!
//! - [`host`]: `/dev/kvm`, what it can do, and what every machine of a process shares.
//! - [`machine`]: a VM with its memory slots, and its cores.
//! - [`exit`]: a raw exit becomes one typed value before anything looks at it.
//! - [`attention`]: calling a thread out of the guest that it runs.
//!
//! Two kinds of KVM keep this contract: the stock ones, and `kvm-pvm`, which runs CPL 3 natively without VMX or SVM.

pub mod attention;
pub mod exit;
pub mod host;
pub mod machine;
mod saved;

pub use attention::Attention;
pub use exit::Exit;
pub use host::{Host, HostError};
pub use machine::{Core, Machine, MachineError, Start};
pub use saved::Saved;
