//! What is said of a fault, with the place in the image's source where that is known.

use std::path::Path;

use foraker_api::guest::Fault;
use foraker_cell::{Cause, symbols};

/// Says what a guest did that it may not do. `image` is where symbols are; without it, [`locate`] can look there later.
#[must_use]
pub fn report(fault: &foraker_cell::Fault, image: Option<&Path>) -> Fault {
    let (vector, error_code, address, detail) = match &fault.cause {
        Cause::Exception { vector, error_code, address } => (Some(*vector), *error_code, *address, None),
        Cause::Ring(text) | Cause::Machine(text) => (None, None, None, Some(text.clone())),
        Cause::GivenBack => (None, None, None, None),
        Cause::Upcall(stack) => (None, None, Some(*stack), None),
    };
    let r = &fault.registers;
    let registers = [
        ("rax", r.rax),
        ("rbx", r.rbx),
        ("rcx", r.rcx),
        ("rdx", r.rdx),
        ("rsi", r.rsi),
        ("rdi", r.rdi),
        ("rsp", r.rsp),
        ("rbp", r.rbp),
        ("r8", r.r8),
        ("r9", r.r9),
        ("r10", r.r10),
        ("r11", r.r11),
        ("r12", r.r12),
        ("r13", r.r13),
        ("r14", r.r14),
        ("r15", r.r15),
        ("rip", r.rip),
        ("rflags", r.rflags),
    ];
    let (mnemonic, name) = fault.cause.name();
    let mut report = Fault {
        vector,
        mnemonic: mnemonic.to_owned(),
        name: name.to_owned(),
        error_code,
        address: address.map(hex),
        detail,
        core: fault.core,
        rip: hex(fault.rip),
        registers: registers.into_iter().map(|(n, v)| (n.to_owned(), hex(v))).collect(),
        ..Fault::default()
    };
    if let Some(image) = image {
        locate(&mut report, image);
    }
    report
}

/// Looks where in the image's source a fault was.
pub fn locate(fault: &mut Fault, image: &Path) {
    let rip = fault.rip.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    if let Some(place) = rip.and_then(|rip| symbols::locate(image, rip)) {
        (fault.function, fault.file, fault.line) = (place.function, place.file, place.line);
    }
}

fn hex(value: u64) -> String {
    format!("{value:#x}")
}
