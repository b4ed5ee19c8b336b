//! Virtual registers: a page that the VMM writes and the guest reads, without an exit.
//!
//! After Denali's virtual registers and Akaros' exposed information: what the VMM knows of a guest's resources, the guest can read.
//! All numbers are little-endian; times are nanoseconds of guest time unless a field says otherwise.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// First word of the page.
pub const MAGIC: u64 = u64::from_le_bytes(*b"FORAKER\0");

/// The page.
#[repr(C)]
#[derive(Debug)]
pub struct Registers {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`crate::VERSION`] of the VMM.
    pub abi_version: u32,
    /// Cores that the guest may start, core 0 included: 1 to [`crate::layout::MAX_CORES`].
    pub cores: u32,
    /// Identity of the guest.
    pub guest_id: u64,
    /// Changes at each launch, restore or clone.
    pub incarnation: AtomicU64,
    /// Fresh random bytes for each incarnation.
    pub entropy: [u8; 32],
    /// Bytes of memory given, page tables included.
    pub memory_size: u64,
    /// First byte of the heap, page-aligned.
    pub heap_start: u64,
    /// End of the heap and of what the guest may write.
    pub memory_end: u64,
    /// Top of core 0's stack.
    pub stack_top: u64,
    /// `CPU_*` bits.
    pub cpu_features: u64,
    /// First byte of the guest's own memory: the bottom of core 0's stack.
    pub memory_start: u64,
    /// Not used; 0.
    pub reserved0: [u64; 2],
    /// Time.
    pub time: Time,
    /// The virtual ethernet.
    pub net: Net,
    /// Arguments and environment.
    pub boot: Boot,
    /// Scheduling.
    pub schedule: Schedule,
    /// Resources now.
    pub resources: Resources,
    /// Counters.
    pub counters: Counters,
}

/// Time from the time-stamp counter, by a sequence lock: read `sequence` (even, else try again), the fields, and
/// `sequence` again. Guest time is `base_ns + ((tsc - base_tsc) * multiplier >> 32)`, the product in 128 bits; it starts near 0 at launch.
#[repr(C)]
#[derive(Debug)]
pub struct Time {
    /// Odd while the VMM changes the fields.
    pub sequence: AtomicU32,
    /// Not used; 0.
    pub reserved: u32,
    /// Nanoseconds per 2^32 ticks.
    pub multiplier: AtomicU64,
    /// Time-stamp counter at `base_ns`.
    pub base_tsc: AtomicU64,
    /// Guest time at `base_tsc`.
    pub base_ns: AtomicU64,
    /// Add to guest time for nanoseconds since 1970-01-01 UTC.
    pub wall_offset_ns: AtomicU64,
    /// Ticks per second.
    pub tsc_hz: AtomicU64,
    /// Not used; 0.
    pub reserved1: [u64; 2],
}

/// Addresses and limits of the virtual ethernet. All 0 when the guest has none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Net {
    /// 1 when there is a device.
    pub present: u32,
    /// `FEATURE_*` of [`crate::net`].
    pub features: u32,
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Most bytes of an IP packet on the wire.
    pub mtu: u16,
    /// IPv4 address.
    pub ipv4: [u8; 4],
    /// IPv4 gateway.
    pub gateway4: [u8; 4],
    /// IPv4 name server; 0.0.0.0 for none.
    pub dns4: [u8; 4],
    /// Bits of the IPv4 prefix.
    pub prefix4: u8,
    /// Bits of the IPv6 prefix.
    pub prefix6: u8,
    /// Not used; 0.
    pub reserved0: [u8; 2],
    /// IPv6 address; all 0 for none.
    pub ipv6: [u8; 16],
    /// IPv6 gateway.
    pub gateway6: [u8; 16],
}

/// Arguments and environment: `argument_count` strings, then `environment_count` strings `NAME=value`, each with a closing NUL. They stand at
/// [`crate::layout::SMALL_BOOT`], or at [`crate::layout::BOOT`] if they need more room.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Boot {
    /// Number of arguments; the first is the guest's name.
    pub argument_count: u32,
    /// Number of environment strings.
    pub environment_count: u32,
    /// Bytes of all of them.
    pub size: u32,
    /// Bytes from [`crate::layout::REGISTERS`] to the first of them.
    pub offset: u32,
}

/// Scheduling, changed by the VMM while the guest runs.
#[repr(C)]
#[derive(Debug)]
pub struct Schedule {
    /// When the running core will be taken away if another guest waits; 0 while nobody waits.
    pub quantum_end: AtomicU64,
    /// How long looking at the rings before calling `idle` is welcome, nanoseconds; 0 for not at all.
    pub look_ns: AtomicU32,
    /// 1 when each interrupt forces the guest out (for comparison), 0 when they are batched.
    pub immediate: AtomicU32,
    /// Bit i: core i has a processor now.
    pub running: AtomicU64,
    /// Processor time used, all cores, nanoseconds. Brought up to date when a core gives up its processor.
    pub cpu_ns: AtomicU64,
}

/// What is provisioned, allocated and in use. Brought up to date at exits, and when what the guest has asked for is decided.
#[repr(C)]
#[derive(Debug)]
pub struct Resources {
    /// Memory promised: what the guest has of it is not asked back, and what it has given back comes when it asks.
    pub memory_provisioned: AtomicU64,
    /// Memory given now. It differs from `memory_size` by what the guest has given back: the end of its heap.
    pub memory_allocated: AtomicU64,
    /// Memory resident now (0: not known).
    pub memory_resident: AtomicU64,
    /// Processor time promised, thousandths of a processor.
    pub cpu_provisioned: AtomicU32,
    /// Cores given now.
    pub cores_allocated: AtomicU32,
}

/// Counters of the guest's own events since launch. Brought up to date when rings are served and at exits.
#[repr(C)]
#[derive(Debug)]
pub struct Counters {
    /// Exits to the VMM.
    pub exits: AtomicU64,
    /// Frames put into the receive ring.
    pub rx_frames: AtomicU64,
    /// Bytes of them.
    pub rx_bytes: AtomicU64,
    /// Frames taken from the transmit ring and sent.
    pub tx_frames: AtomicU64,
    /// Bytes of them.
    pub tx_bytes: AtomicU64,
    /// Frames for the guest that were dropped (ring full, rate limit).
    pub rx_dropped: AtomicU64,
    /// Frames of the guest that were refused (forged, malformed, rate limit).
    pub tx_dropped: AtomicU64,
    /// Console bytes that were dropped by the rate limit.
    pub console_dropped: AtomicU64,
}

/// `cpu_features`: AVX state is enabled.
pub const CPU_AVX: u64 = 1 << 0;
/// `cpu_features`: AVX2.
pub const CPU_AVX2: u64 = 1 << 1;
/// `cpu_features`: AES instructions.
pub const CPU_AES: u64 = 1 << 2;
/// `cpu_features`: RDRAND.
pub const CPU_RDRAND: u64 = 1 << 3;
/// `cpu_features`: `rdfsbase` and its kin.
pub const CPU_FSGSBASE: u64 = 1 << 4;
/// `cpu_features`: enhanced `rep movsb`.
pub const CPU_ERMS: u64 = 1 << 5;
/// `cpu_features`: AVX-512 foundation state is enabled.
pub const CPU_AVX512: u64 = 1 << 6;

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Registers, magic) == 0x000);
    assert!(offset_of!(Registers, abi_version) == 0x008);
    assert!(offset_of!(Registers, cores) == 0x00c);
    assert!(offset_of!(Registers, guest_id) == 0x010);
    assert!(offset_of!(Registers, incarnation) == 0x018);
    assert!(offset_of!(Registers, entropy) == 0x020);
    assert!(offset_of!(Registers, memory_size) == 0x040);
    assert!(offset_of!(Registers, heap_start) == 0x048);
    assert!(offset_of!(Registers, memory_end) == 0x050);
    assert!(offset_of!(Registers, stack_top) == 0x058);
    assert!(offset_of!(Registers, cpu_features) == 0x060);
    assert!(offset_of!(Registers, memory_start) == 0x068);
    assert!(offset_of!(Registers, time) == 0x080);
    assert!(offset_of!(Registers, net) == 0x0c0);
    assert!(offset_of!(Registers, boot) == 0x100);
    assert!(offset_of!(Registers, schedule) == 0x110);
    assert!(offset_of!(Registers, resources) == 0x130);
    assert!(offset_of!(Registers, counters) == 0x150);
    assert!(size_of::<Time>() == 64 && size_of::<Net>() == 0x40 && size_of::<Boot>() == 16);
    assert!(size_of::<Schedule>() == 32 && size_of::<Resources>() == 32 && size_of::<Counters>() == 64);
    assert!(offset_of!(Time, multiplier) == 8 && offset_of!(Time, base_tsc) == 16);
    assert!(offset_of!(Time, base_ns) == 24 && offset_of!(Time, wall_offset_ns) == 32);
    assert!(offset_of!(Time, tsc_hz) == 40);
    assert!(offset_of!(Net, mac) == 8 && offset_of!(Net, mtu) == 14 && offset_of!(Net, ipv4) == 16);
    assert!(offset_of!(Net, gateway4) == 20 && offset_of!(Net, dns4) == 24 && offset_of!(Net, prefix4) == 28);
    assert!(offset_of!(Net, ipv6) == 32 && offset_of!(Net, gateway6) == 48);
};
