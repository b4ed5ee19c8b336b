//! The page of virtual registers: values that the architecture fixes, and whether the others can be true.

use core::sync::atomic::Ordering;

use foraker_abi::registers::MAGIC;
use foraker_abi::{VERSION, layout, net};
use guest_libos::{println, registers};

use crate::report::Report;

pub(crate) fn run(report: &mut Report) {
    identity(report);
    sizes(report);
    network(report);
    boot(report);
    changing(report);
}

fn identity(report: &mut Report) {
    let r = registers();
    report.equal("registers.magic", r.magic, MAGIC);
    report.equal("registers.abi_version", r.abi_version, VERSION);
    let incarnation = r.incarnation.load(Ordering::Relaxed);
    let entropy = guest_libos::registers::entropy();
    report.check("registers.incarnation", incarnation != 0, format_args!("0"));
    let distinct = entropy.iter().filter(|&&byte| byte != entropy[0]).count();
    report.check("registers.entropy", distinct > 16, format_args!("{entropy:?}"));
    println!("note guest {:#x}", r.guest_id);
    println!("note incarnation {incarnation:#x}");
    println!("note entropy {:#x}", u128::from_le_bytes(entropy[..16].try_into().unwrap_or_default()));
    report.equal("registers.reserved", r.reserved0, [0; 2]);
}

fn sizes(report: &mut Report) {
    let r = registers();
    let cores_fit = (1..=layout::MAX_CORES).contains(&r.cores);
    report.check("registers.cores", cores_fit, format_args!("{}", r.cores));
    let size = r.memory_size;
    let size_fits =
        (layout::MIN_MEMORY..=layout::MAX_MEMORY).contains(&size) && size.is_multiple_of(layout::PAGE_SIZE);
    report.check("registers.memory_size", size_fits, format_args!("{size:#x}"));
    let ordered = layout::PRIVATE_BASE < r.memory_start
        && r.memory_start + crate::STACK == r.stack_top
        && r.stack_top == layout::REGISTERS
        && layout::DATA_BASE <= r.heap_start
        && r.heap_start < r.memory_end
        && r.memory_end <= r.memory_start + size;
    report.check(
        "registers.layout",
        ordered,
        format_args!("stack_top {:#x} heap {:#x}..{:#x}", r.stack_top, r.heap_start, r.memory_end),
    );
    let aligned = r.heap_start.is_multiple_of(layout::PAGE_SIZE)
        && r.memory_end.is_multiple_of(layout::PAGE_SIZE)
        && r.stack_top.is_multiple_of(16);
    report.check("registers.alignment", aligned, format_args!("{:#x} {:#x}", r.heap_start, r.stack_top));
    println!("note memory {size} cores {}", r.cores);
}

fn network(report: &mut Report) {
    let n = &registers().net;
    if n.present == 0 {
        let zeros = n.mac == [0; 6] && n.ipv4 == [0; 4] && n.ipv6 == [0; 16] && n.mtu == 0;
        report.check("registers.net.absent", zeros, format_args!("{n:?}"));
        return;
    }
    report.equal("registers.net.present", n.present, 1);
    let local_unicast = n.mac[0] & 3 == 2;
    report.check("registers.net.mac", local_unicast, format_args!("{:?}", n.mac));
    report.check("registers.net.mtu", (576..=65_535).contains(&n.mtu), format_args!("{}", n.mtu));
    let known = net::FEATURE_CSUM | net::FEATURE_TSO;
    report.check("registers.net.features", n.features & !known == 0, format_args!("{:#x}", n.features));
    let bits = u32::from(n.prefix4);
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    let (own, gateway) = (u32::from_be_bytes(n.ipv4), u32::from_be_bytes(n.gateway4));
    let same_net =
        (8..=30).contains(&bits) && own & mask == gateway & mask && own != gateway && own & !mask != 0;
    report.check("registers.net.ipv4", same_net, format_args!("{:?}/{bits} via {:?}", n.ipv4, n.gateway4));
    let v6 = n.ipv6 == [0; 16] || (n.prefix6 <= 128 && n.prefix6 > 0 && n.ipv6 != n.gateway6);
    report.check("registers.net.ipv6", v6, format_args!("{:?}/{}", n.ipv6, n.prefix6));
    println!("note ipv4 {}.{}.{}.{}", n.ipv4[0], n.ipv4[1], n.ipv4[2], n.ipv4[3]);
}

fn boot(report: &mut Report) {
    let b = &registers().boot;
    report.check("boot.arguments", b.argument_count >= 1, format_args!("{}", b.argument_count));
    report.check("boot.size", u64::from(b.size) <= layout::BOOT_SIZE, format_args!("{}", b.size));
    let small = layout::CONTROL - layout::SMALL_BOOT;
    let (start, room) = if u64::from(b.size) <= small {
        (layout::SMALL_BOOT, small)
    } else {
        (layout::BOOT, layout::BOOT_SIZE)
    };
    report.equal("boot.offset", u64::from(b.offset), start - layout::REGISTERS);
    // SAFETY: both places are mapped, read-only, for the guest's whole life.
    let bytes = unsafe { core::slice::from_raw_parts(start as *const u8, room as usize) };
    let used = (b.size as usize).min(bytes.len());
    let strings = bytes[..used].iter().filter(|&&byte| byte == 0).count();
    report.equal("boot.strings", strings, (b.argument_count + b.environment_count) as usize);
    report.check(
        "boot.rest_is_zero",
        bytes[used..].iter().all(|&byte| byte == 0),
        format_args!("{used} used"),
    );
    for argument in guest_libos::args() {
        println!("note argument {argument}");
    }
    for (name, value) in guest_libos::boot::environment() {
        println!("note environment {name}={value}");
    }
}

/// What the VMM brings up to date while the guest runs.
fn changing(report: &mut Report) {
    let r = registers();
    let exits = r.counters.exits.load(Ordering::SeqCst);
    let cpu = r.schedule.cpu_ns.load(Ordering::SeqCst);
    for _ in 0..10 {
        guest_libos::hypercall::nop();
    }
    let exits_now = r.counters.exits.load(Ordering::SeqCst);
    let counted = (10..1000).contains(&(exits_now - exits));
    report.check("counters.exits", counted, format_args!("{exits} then {exits_now} for 10 exits"));
    let start = guest_libos::now();
    while guest_libos::now() - start < 3_000_000 {}
    guest_libos::hypercall::idle(guest_libos::now() + 20_000_000);
    let used = r.schedule.cpu_ns.load(Ordering::SeqCst) - cpu;
    let elapsed = guest_libos::now() - start;
    report.check("schedule.cpu_ns", used > 0, format_args!("{used} ns in {elapsed} ns of spinning"));
    report.equal("schedule.running", r.schedule.running.load(Ordering::SeqCst) & 1, 1);
    let resources = &r.resources;
    let memory = resources.memory_provisioned.load(Ordering::SeqCst);
    report.equal("resources.memory_provisioned", memory, r.memory_size);
    report.equal(
        "resources.memory_allocated",
        resources.memory_allocated.load(Ordering::SeqCst),
        r.memory_size,
    );
    let processors = resources.cpu_provisioned.load(Ordering::SeqCst);
    report.equal("resources.cpu_provisioned", processors, 0);
    let allocated = resources.cores_allocated.load(Ordering::SeqCst);
    report.check(
        "resources.cores_allocated",
        (1..=r.cores).contains(&allocated),
        format_args!("{allocated}"),
    );
}
