//! Vectors of the faults that end a guest, and how a report names them.

/// `(vector, mnemonic, name, has an error code)` of each exception that CPL 3 code can cause.
pub const EXCEPTIONS: [(u8, &str, &str, bool); 15] = [
    (0, "#DE", "divide error", false),
    (1, "#DB", "debug exception", false),
    (3, "#BP", "breakpoint", false),
    (4, "#OF", "overflow", false),
    (5, "#BR", "bound range exceeded", false),
    (6, "#UD", "invalid opcode", false),
    (7, "#NM", "device not available", false),
    (10, "#TS", "invalid task state", true),
    (11, "#NP", "segment not present", true),
    (12, "#SS", "stack fault", true),
    (13, "#GP", "general protection", true),
    (14, "#PF", "page fault", true),
    (16, "#MF", "x87 floating-point error", false),
    (17, "#AC", "alignment check", true),
    (19, "#XM", "SIMD floating-point error", false),
];

/// Vectors at which the processor pushes an error code.
pub const ERROR_CODE_VECTORS: u32 =
    1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;

/// Debug exception: the trap flag was set.
pub const DB: u8 = 1;
/// Invalid opcode.
pub const UD: u8 = 6;
/// Breakpoint: a gate that CPL 3 may call (`int3`).
pub const BP: u8 = 3;
/// Overflow: a gate that CPL 3 may call (`int 4`). `int n` with any other number is a general protection fault.
pub const OF: u8 = 4;
/// General protection.
pub const GP: u8 = 13;
/// Page fault.
pub const PF: u8 = 14;
/// Page-fault error code: the page was present.
pub const PF_PRESENT: u64 = 1;
/// Page-fault error code: a write.
pub const PF_WRITE: u64 = 2;
/// Page-fault error code: from CPL 3.
pub const PF_USER: u64 = 4;
/// Page-fault error code: an instruction fetch.
pub const PF_FETCH: u64 = 16;
