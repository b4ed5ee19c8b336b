//! Misbehaving guests: what the report of each must say. One outcome for each, the same on every kind of KVM but for the few that
//! name what they depend on ([`Expect::By`]).

use foraker_abi::fault::{PF_FETCH, PF_PRESENT, PF_USER, PF_WRITE};

use crate::machine::{Machine, Vendor};
use crate::report::{Fault, Guest};

/// How a case must end.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// An exception: its vector, its error code, and, when the instruction is the guest's own, its function. Address
    /// and instruction are those that the guest announced in its line `expect rip=... address=...`.
    Exception(u8, Option<u64>, &'static str),
    /// An exception without an error code at an instruction that stands so many bytes before the announced one.
    Before(u64, u8, &'static str),
    /// The same, or at the announced one: processors differ.
    Around(u64, u8, &'static str),
    /// General protection at the announced address, which is where a jump leads.
    Arrived,
    /// A damaged ring: which one, and what the report says of it.
    Ring(&'static str, &'static str),
    /// An upcall that cannot be delivered.
    Upcall,
    /// The use of memory that it has given back.
    GivenBack,
    /// A hypercall that may not be answered otherwise: the guest checks it and exits with 0.
    Held,
    /// The same; and a frame was dropped for this reason.
    Dropped(&'static str),
    /// It exits with this status.
    Exit(u64),
    /// Nothing stops its deed, which it says.
    WentOn,
    /// It does not end by itself.
    Endless,
    /// What the machine below makes of it.
    By(fn(Machine) -> Expect),
}

/// A case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, which is the guest's argument.
    pub name: &'static str,
    /// How it must end.
    pub expect: Expect,
    /// Options of the guest.
    pub options: &'static [&'static str],
    /// Not together with other cases: it is loud, or needs a machine for itself.
    pub alone: bool,
}

const fn case(name: &'static str, expect: Expect) -> Case {
    Case { name, expect, options: &[], alone: false }
}

const fn alone(name: &'static str, expect: Expect) -> Case {
    Case { name, expect, options: &[], alone: true }
}

const fn cores(name: &'static str, expect: Expect) -> Case {
    Case { name, expect, options: &["--cores", "2"], alone: false }
}

/// An exception without an error code.
const fn plain(name: &'static str, vector: u8, function: &'static str) -> Case {
    case(name, Expect::Exception(vector, None, function))
}

/// General protection with the error code 0.
const fn protection(name: &'static str, function: &'static str) -> Case {
    case(name, Expect::Exception(GP, Some(0), function))
}

/// A page fault.
const fn page(name: &'static str, code: u64, function: &'static str) -> Case {
    case(name, Expect::Exception(PF, Some(code), function))
}

const fn transmit(name: &'static str, text: &'static str) -> Case {
    case(name, Expect::Ring("transmit", text))
}

const fn receive(name: &'static str, text: &'static str) -> Case {
    case(name, Expect::Ring("receive", text))
}

const fn dropped(name: &'static str, reason: &'static str) -> Case {
    case(name, Expect::Dropped(reason))
}

/// A frame for a guest of another network. The case's own is not that of the web server beside it.
const fn apart(name: &'static str) -> Case {
    Case { name, expect: Expect::Dropped("isolated"), options: &["--network", "apart"], alone: false }
}

const fn held(name: &'static str) -> Case {
    case(name, Expect::Held)
}

const fn endless(name: &'static str) -> Case {
    case(name, Expect::Endless)
}

const DE: u8 = 0;
const DB: u8 = 1;
const BP: u8 = foraker_abi::fault::BP;
const OF: u8 = foraker_abi::fault::OF;
const UD: u8 = foraker_abi::fault::UD;
const SS: u8 = 12;
const GP: u8 = foraker_abi::fault::GP;
const PF: u8 = foraker_abi::fault::PF;
const MF: u8 = 16;
const AC: u8 = 17;
const XM: u8 = 19;

/// Error codes of page faults at CPL 3.
const READ: u64 = PF_USER;
const WRITE: u64 = PF_USER | PF_WRITE;
const FETCH: u64 = PF_USER | PF_FETCH;
const READ_PRESENT: u64 = READ | PF_PRESENT;
const WRITE_PRESENT: u64 = WRITE | PF_PRESENT;
const FETCH_PRESENT: u64 = FETCH | PF_PRESENT;
/// Error code of `int n`: the vector's place in the table of descriptors, and that it is this table.
const fn gate(vector: u64) -> Option<u64> {
    Some(vector * 8 + 2)
}

const KERNEL_CODE: u64 = foraker_abi::layout::KERNEL_CODE as u64;

/// Intel's processors refuse it while no target is set, unless `kvm-pvm` has taken it over; AMD's do not know it in long mode.
fn sysenter(machine: Machine) -> Expect {
    match machine {
        Machine { vendor: Vendor::Intel, pvm: false, .. } => Expect::Exception(GP, Some(0), "sysenter"),
        _ => Expect::Exception(UD, None, "sysenter"),
    }
}

/// A hypercall of another architecture: KVM answers the instruction that the processor knows with an error in RAX. The other
/// one it replaces, which a guest may not ask for at CPL 3: stock KVM looks at that first, and so does `kvm-pvm` on AMD's processors; on Intel's it meets
/// text that cannot be written. (Measured where `kvm-pvm` itself runs in a virtual machine.)
fn hypercall(machine: Machine, known_to: Vendor, function: &'static str) -> Expect {
    match machine {
        Machine { vendor, .. } if vendor == known_to => Expect::Held,
        Machine { vendor: Vendor::Intel, pvm: true, .. } => {
            Expect::Exception(PF, Some(WRITE_PRESENT), function)
        }
        _ => Expect::Exception(GP, Some(0), function),
    }
}

/// QEMU's processor does not check alignment.
fn alignment(machine: Machine) -> Expect {
    if machine.emulated { Expect::WentOn } else { Expect::Exception(AC, Some(0), "alignment") }
}

/// QEMU's processor sets the flags of a SIMD exception, and raises none.
fn simd(machine: Machine) -> Expect {
    if machine.emulated { Expect::WentOn } else { Expect::Exception(XM, None, "simd") }
}

/// A trap, reported behind the one byte of the instruction, which QEMU's processor does not know. `kvm-pvm` on some of AMD's processors reports it at the
/// instruction. (Measured where it runs in a virtual machine.)
fn icebp(machine: Machine) -> Expect {
    match machine {
        Machine { emulated: true, .. } => Expect::Before(1, UD, "icebp"),
        Machine { vendor: Vendor::Amd, pvm: true, .. } => Expect::Around(1, DB, "icebp"),
        _ => Expect::Exception(DB, None, "icebp"),
    }
}

/// QEMU's processor makes no difference between the stack and other memory in long mode.
fn non_canonical_stack(machine: Machine) -> Expect {
    let vector = if machine.emulated { GP } else { SS };
    Expect::Exception(vector, Some(0), "read_by_stack")
}

/// Processors refuse the jump, QEMU's refuses to fetch where it leads.
fn non_canonical_jump(machine: Machine) -> Expect {
    if machine.emulated { Expect::Arrived } else { Expect::Exception(GP, Some(0), "jump") }
}

/// Guests that end by one instruction.
pub const FAULTS: &[Case] = &[
    plain("ud2", UD, "ud2"),
    plain("locked-nop", UD, "locked_nop"),
    protection("too-long", "too_long"),
    plain("divide-by-zero", DE, "divide"),
    plain("breakpoint", BP, "int3"),
    plain("int-3", BP, "int_3"),
    case("int-4", Expect::Exception(OF, None, "int_4")),
    case("int-14", Expect::Exception(GP, gate(14), "int_14")),
    case("int-32", Expect::Exception(GP, gate(32), "int_32")),
    case("int-128", Expect::Exception(GP, gate(128), "int_128")),
    case("int-255", Expect::Exception(GP, gate(255), "int_255")),
    case("icebp", Expect::By(icebp)),
    plain("trap-flag", DB, "trap_flag"),
    case("alignment", Expect::By(alignment)),
    plain("x87", MF, "x87"),
    case("simd", Expect::By(simd)),
    plain("registers", UD, "patterns"),
    page("null-read", READ, "read_byte"),
    page("null-write", WRITE, "write_byte"),
    page("null-jump", FETCH, ""),
    page("wild-read", READ, "read_byte"),
    page("wild-write", WRITE, "write_byte"),
    page("wild-jump", FETCH, ""),
    page("kernel-half-read", READ, "read_byte"),
    page("kernel-half-write", WRITE, "write_byte"),
    page("kernel-half-jump", FETCH, ""),
    page("vsyscall-read", READ, "read_byte"),
    page("vsyscall-jump", FETCH, ""),
    page("last-byte-read", READ, "read_byte"),
    page("write-text", WRITE_PRESENT, "write_byte"),
    page("write-rodata", WRITE_PRESENT, "write_byte"),
    page("write-registers", WRITE_PRESENT, "write_byte"),
    page("write-boot", WRITE_PRESENT, "write_byte"),
    page("read-descriptors", READ_PRESENT, "read_byte"),
    page("write-descriptors", WRITE_PRESENT, "write_byte"),
    page("write-task-state", WRITE_PRESENT, "write_byte"),
    page("jump-fault-stub", FETCH_PRESENT, ""),
    page("read-fault-stack", READ_PRESENT, "read_byte"),
    page("write-fault-stack", WRITE_PRESENT, "write_byte"),
    page("read-page-tables", READ, "read_byte"),
    page("write-page-tables", WRITE, "write_byte"),
    page("read-memory-end", READ, "read_byte"),
    page("read-guard-page", READ, "read_byte"),
    page("execute-data", FETCH_PRESENT, ""),
    page("execute-rodata", FETCH_PRESENT, ""),
    page("execute-stack", FETCH_PRESENT, ""),
    page("execute-registers", FETCH_PRESENT, ""),
    page("stack-overflow", WRITE, "push_forever"),
    protection("non-canonical-read", "read_byte"),
    protection("non-canonical-write", "write_byte"),
    case("non-canonical-stack", Expect::By(non_canonical_stack)),
    case("non-canonical-jump", Expect::By(non_canonical_jump)),
    protection("hlt", "hlt"),
    protection("cli", "cli"),
    protection("sti", "sti"),
    protection("rdmsr", "rdmsr"),
    protection("wrmsr", "wrmsr"),
    protection("read-cr0", "read_cr0"),
    protection("read-cr3", "read_cr3"),
    protection("write-cr3", "write_cr3"),
    protection("write-cr4", "write_cr4"),
    protection("read-dr7", "read_dr7"),
    protection("lgdt", "lgdt"),
    protection("lidt", "lidt"),
    protection("ltr", "ltr"),
    protection("invlpg", "invlpg"),
    protection("wbinvd", "wbinvd"),
    protection("clts", "clts"),
    protection("swapgs", "swapgs"),
    protection("xsetbv", "xsetbv"),
    case("kernel-segment", Expect::Exception(GP, Some(KERNEL_CODE), "load_segment")),
    case("kernel-far-return", Expect::Exception(GP, Some(KERNEL_CODE), "far_return")),
    case("kernel-interrupt-return", Expect::Exception(GP, Some(KERNEL_CODE), "interrupt_return")),
    plain("syscall", UD, "syscall"),
    case("sysenter", Expect::By(sysenter)),
    case("vmcall", Expect::By(|machine| hypercall(machine, Vendor::Intel, "vmcall"))),
    case("vmmcall", Expect::By(|machine| hypercall(machine, Vendor::Amd, "vmmcall"))),
    protection("port-out", "out_immediate"),
    protection("port-in", "in_immediate"),
    protection("port-out-8", "out_8"),
    protection("port-out-16", "out_16"),
    protection("port-out-32", "out_32"),
    protection("port-in-8", "in_8"),
    protection("port-in-16", "in_16"),
    protection("port-in-32", "in_32"),
    protection("port-last", "out_32"),
    protection("port-out-string", "out_string"),
    protection("port-in-string", "in_string"),
    protection("port-hypercall-16", "out_hypercall_16"),
    protection("port-hypercall-32", "out_hypercall_32"),
    protection("port-hypercall-in", "in_hypercall"),
    // Each byte is a hypercall of the number in RAX.
    held("port-hypercall-string"),
    protection("port-fault", "out_fault_port"),
    protection("port-doorbell-in", "in_doorbell"),
    alone("endless-loop", Expect::Endless),
];

/// Guests that abuse hypercalls and the control page.
pub const CALLS: &[Case] = &[
    held("unknown-hypercalls"),
    held("console-wild"),
    held("console-wrap"),
    held("console-huge"),
    held("memory-wild"),
    held("memory-unaligned"),
    held("memory-unknown"),
    held("discard-odd"),
    held("discard-shared"),
    page("discard-stack", FETCH, ""),
    held("resources-wild"),
    case("given-back-read", Expect::GivenBack),
    case("given-back-console", Expect::GivenBack),
    held("given-back-advice"),
    held("resize-storm"),
    cores("core-wild-entry", Expect::Held),
    cores("core-non-canonical-entry", Expect::Held),
    cores("core-kernel-entry", Expect::Held),
    cores("core-wild-stack", Expect::Held),
    cores("core-non-canonical-stack", Expect::Held),
    cores("core-heap-entry", Expect::Exception(PF, Some(FETCH_PRESENT), "")),
    cores("core-text-stack", Expect::Exception(PF, Some(WRITE_PRESENT), "push_forever")),
    cores("core-ud2", Expect::Exception(UD, None, "ud2")),
    cores("core-spin", Expect::Endless),
    held("doorbell-unknown"),
    case("terminate-large", Expect::Exit(0x1_0000_0001)),
    case("terminate-negative", Expect::Exit(u64::MAX)),
    case("terminate-vmm-status", Expect::Exit(125)),
    held("pending-always"),
    held("control-scribble"),
    case("upcall-wild", Expect::Upcall),
    case("upcall-null", Expect::Upcall),
    case("upcall-non-canonical", Expect::Upcall),
    case("upcall-kernel-half", Expect::Upcall),
    case("upcall-supervisor", Expect::Upcall),
    page("upcall-heap", FETCH_PRESENT, ""),
    case("upcall-stack-null", Expect::Upcall),
    case("upcall-stack-wild", Expect::Upcall),
    case("upcall-stack-non-canonical", Expect::Upcall),
    case("upcall-stack-text", Expect::Upcall),
    case("upcall-stack-registers", Expect::Upcall),
    case("upcall-stack-supervisor", Expect::Upcall),
    case("upcall-stack-page-tables", Expect::Upcall),
    endless("upcall-storm"),
    endless("endless-nop"),
    endless("endless-yield"),
    endless("endless-idle"),
    endless("endless-ready"),
    endless("endless-unknown"),
    endless("endless-doorbell"),
    endless("endless-doorbell-port"),
    endless("endless-memory"),
    endless("endless-wild"),
    endless("sleep-forever"),
];

const OUTSIDE: &str = "is outside of the guest's memory";
const LONG_CHAIN: &str = "chain of more than 20 descriptors";
const NOT_SEGMENTED: &str = "offload header: segmentation without a size or without a checksum";
const NO_CHECKSUM: &str = "offload header: checksum field outside of the frame";

/// Guests that corrupt a ring, or send what nobody may send.
pub const RINGS: &[Case] = &[
    transmit("tx-index-jump", "available index"),
    transmit("tx-index-back", "available index"),
    transmit("tx-head-first", "descriptor 256 does not exist"),
    transmit("tx-head-last", "descriptor 65535 does not exist"),
    transmit("tx-next-first", "descriptor 256 does not exist"),
    transmit("tx-next-last", "descriptor 65535 does not exist"),
    transmit("tx-chain-self", LONG_CHAIN),
    transmit("tx-chain-loop", LONG_CHAIN),
    held("tx-chain-longest"),
    transmit("tx-chain-long", LONG_CHAIN),
    transmit("tx-chain-all", LONG_CHAIN),
    transmit("tx-address-null", OUTSIDE),
    transmit("tx-address-wild", OUTSIDE),
    transmit("tx-address-wrap", OUTSIDE),
    transmit("tx-address-supervisor", OUTSIDE),
    transmit("tx-address-fault-stack", OUTSIDE),
    transmit("tx-address-page-tables", OUTSIDE),
    transmit("tx-address-behind", OUTSIDE),
    transmit("tx-address-straddle", OUTSIDE),
    transmit("tx-zero-length", "descriptor of length 0"),
    transmit("tx-header-truncated", "transmit buffer of 11 bytes"),
    dropped("tx-header-only", "malformed"),
    dropped("tx-runt", "malformed"),
    transmit("tx-huge-length", OUTSIDE),
    transmit("tx-huge-sum", "transmit buffer of more than"),
    transmit("tx-wrong-direction", "buffer of the wrong direction"),
    transmit("tx-indirect", "descriptor flags 0x4"),
    dropped("tx-too-long", "too_large"),
    held("tx-same-head-often"),
    held("tx-used-scribble"),
    held("tx-used-zero"),
    transmit("tx-ring-ones", "available index 65535"),
    receive("rx-ring-ones", "descriptor 65535 does not exist"),
    case("rings-random", Expect::Ring("", "")),
    transmit("offload-flags", "offload header: flags 0x81"),
    transmit("offload-buffers", "offload header: number of buffers 1"),
    transmit("offload-gso-without-csum", NOT_SEGMENTED),
    transmit("offload-gso-unknown", "offload header: segmentation type 9"),
    transmit("offload-gso-ecn", "offload header: segmentation type 129"),
    transmit("offload-gso-size-zero", NOT_SEGMENTED),
    transmit("offload-header-length", "offload header: header length 3055 exceeds the frame"),
    transmit("offload-csum-start", NO_CHECKSUM),
    transmit("offload-csum-offset", NO_CHECKSUM),
    dropped("offload-csum-elsewhere", "bad_offload"),
    dropped("offload-gso-wrong-family", "bad_offload"),
    dropped("offload-gso-tiny", "bad_offload"),
    dropped("offload-gso-udp", "bad_offload"),
    dropped("offload-gso-arp", "bad_offload"),
    dropped("forged-mac", "forged_source"),
    dropped("forged-mac-group", "forged_source"),
    dropped("forged-ipv4", "forged_source"),
    dropped("forged-gateway", "forged_source"),
    dropped("forged-arp-mac", "forged_source"),
    dropped("forged-arp-ipv4", "forged_source"),
    dropped("forged-arp-reply", "forged_source"),
    dropped("forged-ipv6", "forged_source"),
    dropped("forged-vlan", "unsupported_protocol"),
    apart("apart-arp"),
    apart("apart-direct"),
    apart("apart-by-gateway"),
    apart("apart-other-cell"),
    dropped("ipv4-truncated", "malformed"),
    receive("rx-index-jump", "available index"),
    receive("rx-head-last", "descriptor 65535 does not exist"),
    receive("rx-chain", "chain of more than 1 descriptors"),
    receive("rx-chain-self", "chain of more than 1 descriptors"),
    receive("rx-wrong-direction", "buffer of the wrong direction"),
    receive("rx-indirect", "descriptor flags 0x6"),
    receive("rx-address-null", OUTSIDE),
    receive("rx-address-wild", OUTSIDE),
    receive("rx-address-wrap", OUTSIDE),
    receive("rx-address-supervisor", OUTSIDE),
    receive("rx-address-fault-stack", OUTSIDE),
    receive("rx-address-page-tables", OUTSIDE),
    receive("rx-address-straddle", OUTSIDE),
    receive("rx-address-text", OUTSIDE),
    receive("rx-address-rodata", OUTSIDE),
    receive("rx-address-registers", OUTSIDE),
    receive("rx-address-boot", OUTSIDE),
    receive("rx-zero-length", "descriptor of length 0"),
    receive("rx-short", "receive buffer of 255 bytes"),
    receive("rx-huge-length", OUTSIDE),
    dropped("rx-no-buffers", "ring_full"),
    held("rx-used-scribble"),
];

/// Guests that take as much as they get.
pub const FLOODS: &[Case] = &[
    alone("console-flood", Expect::Endless),
    alone("flood-broadcast", Expect::Endless),
    alone("flood-arp", Expect::Endless),
    alone("flood-gateway", Expect::Endless),
    alone("flood-neighbour", Expect::Endless),
    alone("flood-forged", Expect::Endless),
    case("touch-memory", Expect::Held),
    endless("touch-memory-forever"),
    case("exhaust-memory", Expect::Held),
    case("panic", Expect::Exit(101)),
];

/// Every case.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [FAULTS, CALLS, RINGS, FLOODS].into_iter().flatten()
}

/// What a guest announced before its deed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The instruction.
    pub rip: Option<u64>,
    /// The address.
    pub address: Option<u64>,
}

/// Finds the announcement among the lines of a guest's console.
#[must_use]
pub fn announced(lines: &[&str]) -> Option<Announced> {
    let line = lines.iter().find_map(|line| line.strip_prefix("expect"))?;
    let field =
        |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name).and_then(number));
    Some(Announced { rip: field("rip="), address: field("address=") })
}

/// A number as reports write it.
fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Whether a case has nothing more to say: it announced its deed, or came back from it.
#[must_use]
pub fn is_done(lines: &[&str]) -> bool {
    lines.iter().any(|line| line.starts_with("expect") || ["held", "went on", "failed"].contains(line))
}

/// Compares a guest's end with what its case expects; what is wrong, if anything.
///
/// # Errors
/// What was expected, and what the report says.
pub fn judge(case: &Case, guest: &Guest, lines: &[&str]) -> Result<(), String> {
    let expect = match case.expect {
        Expect::By(machine_decides) => machine_decides(Machine::here()),
        expect => expect,
    };
    meets(expect, guest, lines).map_err(|problem| {
        let end = match &guest.fault {
            Some(f) => {
                let Fault { mnemonic, error_code, address, rip, function, detail, .. } = f;
                format!("{mnemonic} {error_code:?} {address:?} at {rip} in {function:?} {detail:?}")
            }
            None => format!("{} {:?} {:?}", guest.end, guest.status, guest.reason),
        };
        format!("{}: {problem}; expected {expect:?}, got {end}; console {lines:?}", case.name)
    })
}

/// Compares what a supervisor's list says of a guest with what its case expects, as far as the list tells it.
///
/// # Errors
/// What was expected, and what the list says.
pub fn judge_listed(case: &Case, phase: &str) -> Result<(), String> {
    let expect = match case.expect {
        Expect::By(machine_decides) => machine_decides(Machine::here()),
        expect => expect,
    };
    let fault = |name: &str, mnemonic: &str| format!("fault: {name} ({mnemonic}) at 0x");
    let of_vector = |vector: u8| {
        let known = foraker_abi::fault::EXCEPTIONS.iter().find(|(v, ..)| *v == vector);
        known.map_or_else(String::new, |(_, mnemonic, name, _)| fault(name, mnemonic))
    };
    let (wanted, whole) = match expect {
        Expect::Exception(vector, ..) | Expect::Before(_, vector, _) | Expect::Around(_, vector, _) => {
            (of_vector(vector), false)
        }
        Expect::Arrived => (of_vector(GP), false),
        Expect::Ring(..) => (fault("damaged ring", "ring"), false),
        Expect::Upcall => (fault("upcall to a stack that cannot be written", "upcall"), false),
        Expect::GivenBack => (fault("use of memory that was given back", "memory"), false),
        Expect::Held | Expect::Dropped(_) => ("exit 0".to_owned(), true),
        Expect::Exit(status) => (format!("exit {status}"), true),
        Expect::WentOn => ("exit 1".to_owned(), true),
        Expect::Endless => ("killed: it was killed".to_owned(), true),
        Expect::By(_) => return Err(format!("{}: the machine decides once", case.name)),
    };
    if !wanted.is_empty() && (phase == wanted || (!whole && phase.starts_with(&wanted))) {
        return Ok(());
    }
    Err(format!("{}: expected {wanted:?}, listed as {phase:?}", case.name))
}

fn meets(expect: Expect, guest: &Guest, lines: &[&str]) -> Result<(), String> {
    let ended = |how: &str| if guest.end == how { Ok(()) } else { Err("another end".to_owned()) };
    let exited = |status: u64| {
        ended("exit")?;
        if guest.status == Some(status) { Ok(()) } else { Err("another status".to_owned()) }
    };
    match expect {
        Expect::Exception(vector, code, function) => {
            exception(guest, (vector, code), function, announced(lines))
        }
        Expect::Around(bytes, vector, function) => {
            let there = exception(guest, (vector, None), function, announced(lines));
            there.or_else(|_| meets(Expect::Before(bytes, vector, function), guest, lines))
        }
        Expect::Before(bytes, vector, function) => {
            let place = announced(lines).and_then(|place| place.rip).ok_or("no place announced")?;
            let place = Announced { rip: Some(place - bytes), address: None };
            exception(guest, (vector, None), function, Some(place))
        }
        Expect::Arrived => {
            let place = announced(lines).and_then(|place| place.address).ok_or("no address announced")?;
            let place = Announced { rip: Some(place), address: None };
            exception(guest, (GP, Some(0)), "", Some(place))?;
            let inside = guest.fault.as_ref().is_some_and(|fault| fault.function.is_some());
            if inside { Err("in a function".to_owned()) } else { Ok(()) }
        }
        Expect::Ring(queue, text) => {
            let fault = guest.fault.as_ref().ok_or("no fault")?;
            let detail = fault.detail.as_deref().unwrap_or_default();
            let named = detail.starts_with(queue) && detail.contains(" ring: ") && detail.contains(text);
            if fault.mnemonic == "ring" && named { Ok(()) } else { Err("another fault".to_owned()) }
        }
        Expect::Upcall => {
            let fault = guest.fault.as_ref().ok_or("no fault")?;
            if fault.mnemonic == "upcall" && fault.address.is_some() {
                Ok(())
            } else {
                Err("another fault".to_owned())
            }
        }
        Expect::GivenBack => {
            let fault = guest.fault.as_ref().ok_or("no fault")?;
            if fault.mnemonic == "memory" { Ok(()) } else { Err("another fault".to_owned()) }
        }
        Expect::Held => exited(0),
        Expect::Dropped(reason) => {
            exited(0)?;
            if guest.dropped(reason) == 0 { Err(format!("dropped for {:?}", guest.drops)) } else { Ok(()) }
        }
        Expect::Exit(status) => exited(status),
        Expect::WentOn => {
            exited(1)?;
            if lines.last() == Some(&"went on") { Ok(()) } else { Err("another last line".to_owned()) }
        }
        Expect::Endless => ended("killed"),
        Expect::By(_) => Err("the machine decides once".to_owned()),
    }
}

fn exception(
    guest: &Guest,
    (vector, code): (u8, Option<u64>),
    function: &str,
    announced: Option<Announced>,
) -> Result<(), String> {
    if guest.end != "fault" {
        return Err("no fault".to_owned());
    }
    let fault = guest.fault.as_ref().ok_or("no fault")?;
    let known = foraker_abi::fault::EXCEPTIONS.iter().find(|(v, ..)| *v == vector);
    let (_, mnemonic, name, _) = known.ok_or("a vector that the contract does not name")?;
    if fault.vector != Some(vector) || fault.mnemonic != *mnemonic || fault.name != *name {
        return Err("another exception".to_owned());
    }
    if fault.error_code != code {
        return Err("another error code".to_owned());
    }
    let announced = announced.ok_or("nothing announced")?;
    let rip = number(&fault.rip);
    if announced.rip.is_some() && announced.rip != rip {
        return Err(format!("rip announced {:x?}", announced.rip));
    }
    if fault.registers.get("rip").and_then(|text| number(text)) != rip {
        return Err("two different values of rip".to_owned());
    }
    let address = fault.address.as_deref().and_then(number);
    if (vector == PF) != address.is_some() {
        return Err("an address belongs to a page fault, and to no other".to_owned());
    }
    if announced.address.is_some() && vector == PF && announced.address != address {
        return Err(format!("address announced {:x?}", announced.address));
    }
    let found = fault.function.as_deref().unwrap_or_default();
    if !found.contains(function)
        || (function.is_empty() && announced.rip.is_some() && !found.is_empty() && fetched(code))
    {
        return Err("another function".to_owned());
    }
    Ok(())
}

/// Whether the fault was met while fetching the instruction: then it is no function's.
fn fetched(code: Option<u64>) -> bool {
    code.is_some_and(|code| code & PF_FETCH != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements() {
        let lines = ["seed 0x5", "expect rip=0x200340 address=0x0", "went on"];
        assert_eq!(announced(&lines), Some(Announced { rip: Some(0x20_0340), address: Some(0) }));
        assert_eq!(announced(&["expect"]), Some(Announced::default()));
        assert_eq!(announced(&["held"]), None);
        assert!(is_done(&lines) && is_done(&["held"]) && !is_done(&["seed 0x5"]));
    }

    #[test]
    fn lists_are_understood() {
        let case = |name: &str| all().find(|case| case.name == name).unwrap();
        for (name, phase) in [
            ("ud2", "fault: invalid opcode (#UD) at 0x200340"),
            ("tx-index-jump", "fault: damaged ring (ring) at 0x0"),
            ("terminate-large", "exit 4294967297"),
            ("endless-loop", "killed: it was killed"),
        ] {
            assert_eq!(judge_listed(case(name), phase), Ok(()));
        }
        for (name, phase) in
            [("ud2", "fault: page fault (#PF) at 0x1"), ("panic", "exit 10"), ("panic", "running")]
        {
            assert!(judge_listed(case(name), phase).is_err());
        }
    }

    /// What a case depends on decides its outcome, and leaves nothing open.
    #[test]
    fn each_case_has_one_outcome() {
        let below = [
            Machine { vendor: Vendor::Intel, pvm: true, emulated: false },
            Machine { vendor: Vendor::Intel, pvm: false, emulated: false },
            Machine { vendor: Vendor::Amd, pvm: true, emulated: false },
            Machine { vendor: Vendor::Amd, pvm: false, emulated: false },
            Machine { vendor: Vendor::Amd, pvm: false, emulated: true },
        ];
        let mut dependent = 0;
        for case in all() {
            if let Expect::By(machine_decides) = case.expect {
                dependent += 1;
                for machine in below {
                    let expect = machine_decides(machine);
                    assert!(!matches!(expect, Expect::By(_) | Expect::Endless), "{}: {expect:?}", case.name);
                }
            }
        }
        assert_eq!(dependent, 8, "back-ends.md lists them");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = all().map(|case| case.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(count > 200);
    }
}
