//! Guests that abuse hypercalls and the control page.

use core::arch::naked_asm;
use core::sync::atomic::Ordering;

use foraker_abi::hypercall::{
    self as hc, CONSOLE, DOORBELL, E_ADDRESS, E_INVALID, E_LIMIT, E_UNKNOWN, E_UNSUPPORTED, MEMORY, RESOURCES,
};
use foraker_abi::{interrupt, layout};
use guest_libos::println;

use crate::case::{Case, Verdict, all, case, check};
use crate::guest::{self, call};
use crate::instruction::{self as ins, Primitive};

const WILD: u64 = 0x3000_0000_0000;
const NON_CANONICAL: u64 = 0x8000_0000_0000;
const PAGE: u64 = layout::PAGE_SIZE;

/// The cases.
pub(crate) const CASES: &[Case] = &[
    case("unknown-hypercalls", unknown_hypercalls),
    case("console-wild", console_wild),
    case("console-wrap", console_wrap),
    case("console-huge", console_huge),
    case("memory-wild", memory_wild),
    case("memory-unaligned", memory_unaligned),
    case("memory-unknown", memory_unknown),
    case("discard-odd", discard_odd),
    case("discard-shared", discard_shared),
    case("discard-stack", || {
        println!("expect rip=0x0 address=0x0");
        let bottom = guest::stack_bottom();
        // SAFETY: the stack is gone behind the call, and with it this program: that is the case.
        unsafe { discard_and_return(MEMORY, hc::memory::DISCARD, bottom, guest::STACK) };
        Verdict::WentOn
    }),
    case("resources-wild", resources_wild),
    case("given-back-read", || {
        let last = give_back(1);
        guest::peek(last);
        endless(|| 0)
    }),
    case("given-back-console", || {
        let last = give_back(4);
        endless(|| call(CONSOLE, [last, 1, 0, 0, 0]))
    }),
    case("given-back-advice", || {
        let page = give_back(16) & !(PAGE - 1);
        all([
            answers("will need", MEMORY, [hc::memory::WILL_NEED, page, PAGE, 0, 0], &[E_ADDRESS]),
            answers("pin", MEMORY, [hc::memory::PIN, page - 15 * PAGE, 16 * PAGE, 0, 0], &[E_ADDRESS]),
            answers("discard", MEMORY, [hc::memory::DISCARD, page, PAGE, 0, 0], &[E_ADDRESS]),
        ])
    }),
    case("resize-storm", resize_storm),
    case("core-wild-entry", || start_core(WILD, second_stack())),
    case("core-non-canonical-entry", || start_core(NON_CANONICAL, second_stack())),
    case("core-kernel-entry", || start_core(layout::FAULT_STUBS, second_stack())),
    case("core-wild-stack", || start_core(ins::push_forever as *const () as u64, WILD)),
    case("core-non-canonical-stack", || start_core(ins::push_forever as *const () as u64, NON_CANONICAL)),
    case("core-heap-entry", || start_core(guest::registers().heap_start, second_stack())),
    case("core-text-stack", || start_core(ins::push_forever as *const () as u64, layout::IMAGE_BASE + 0x40)),
    case("core-ud2", || start_core(ins::ud2 as *const () as u64, second_stack())),
    case("core-spin", || start_core(ins::spin as *const () as u64, second_stack())),
    case("doorbell-unknown", doorbell_unknown),
    case("terminate-large", || terminate(0x1_0000_0001)),
    case("terminate-negative", || terminate(u64::MAX)),
    case("terminate-vmm-status", || terminate(125)),
    case("pending-always", pending_always),
    case("control-scribble", control_scribble),
    case("upcall-wild", || upcall(WILD, None)),
    case("upcall-null", || upcall(0, None)),
    case("upcall-non-canonical", || upcall(NON_CANONICAL, None)),
    case("upcall-kernel-half", || upcall(0xffff_8880_0000_0000, None)),
    case("upcall-supervisor", || upcall(layout::FAULT_STUBS, None)),
    case("upcall-heap", || upcall(guest::registers().heap_start, None)),
    case("upcall-stack-null", || upcall(ins::ud2 as *const () as u64, Some(0))),
    case("upcall-stack-wild", || upcall(ins::ud2 as *const () as u64, Some(WILD))),
    case("upcall-stack-non-canonical", || upcall(ins::ud2 as *const () as u64, Some(NON_CANONICAL))),
    case("upcall-stack-text", || upcall(ins::ud2 as *const () as u64, Some(layout::IMAGE_BASE + 0x800))),
    case("upcall-stack-registers", || upcall(ins::ud2 as *const () as u64, Some(layout::REGISTERS + 0x800))),
    case("upcall-stack-supervisor", || {
        upcall(ins::ud2 as *const () as u64, Some(layout::FAULT_STACK + 0x800))
    }),
    case("upcall-stack-page-tables", || {
        upcall(ins::ud2 as *const () as u64, Some(guest::registers().memory_end + 0x800))
    }),
    case("upcall-storm", upcall_storm),
    case("endless-nop", || endless(|| call(hc::NOP, [0; 5]))),
    case("endless-yield", || endless(|| call(hc::YIELD, [0; 5]))),
    case("endless-idle", || endless(|| call(hc::IDLE, [0; 5]))),
    case("endless-ready", || endless(|| call(hc::READY, [0; 5]))),
    case("endless-unknown", || endless(|| call(hc::COUNT, [0; 5]))),
    case("endless-doorbell", || endless(|| call(DOORBELL, [hc::DEVICE_NET, 0, 0, 0, 0]))),
    case("endless-doorbell-port", || {
        endless(|| {
            guest_libos::hypercall::doorbell_async();
            0
        })
    }),
    case("endless-memory", || {
        endless(|| call(MEMORY, [hc::memory::DISCARD, guest::registers().heap_start, 16 * PAGE, 0, 0]))
    }),
    case("endless-wild", || endless(|| call(CONSOLE, [WILD, 4096, 0, 0, 0]))),
    case("sleep-forever", || {
        println!("expect");
        endless(|| call(hc::IDLE, [hc::FOREVER, 0, 0, 0, 0]))
    }),
];

/// One hypercall whose result must be among `allowed`.
fn answers(what: &str, number: u64, arguments: [u64; 5], allowed: &[i64]) -> Verdict {
    let result = call(number, arguments);
    if allowed.contains(&result) {
        Verdict::Held
    } else {
        println!(
            "FAIL {what}: hypercall {number:#x} {arguments:#x?} returned {result}, expected one of {allowed:?}"
        );
        Verdict::Failed
    }
}

/// Numbers that there are not, among them some whose low half is a number that there is.
fn unknown_hypercalls() -> Verdict {
    let numbers = [
        hc::COUNT,
        hc::COUNT + 1,
        0x100,
        0x1_0003,
        u64::from(u32::MAX),
        1 << 32,
        1 << 32 | hc::TERMINATE,
        1 << 63 | hc::TERMINATE,
        u64::MAX,
    ];
    all(numbers.map(|number| answers("unknown", number, [0; 5], &[E_UNKNOWN])))
}

/// Addresses where nothing of the guest is, or nothing that it may read.
fn forbidden() -> [(&'static str, u64); 9] {
    let memory_end = guest::registers().memory_end;
    [
        ("null", 0),
        ("wild", WILD),
        ("non-canonical", NON_CANONICAL),
        ("kernel half", 0xffff_8880_0000_0000),
        ("supervisor pages", layout::SUPERVISOR_BASE),
        ("fault stack", layout::FAULT_STACK),
        ("page tables", memory_end),
        ("behind memory", guest::registers().memory_start + guest::registers().memory_size),
        ("before private memory", guest::stack_bottom() - PAGE),
    ]
}

fn console_wild() -> Verdict {
    let memory_end = guest::registers().memory_end;
    all([
        all(forbidden().map(|(what, address)| answers(what, CONSOLE, [address, 16, 0, 0, 0], &[E_ADDRESS]))),
        answers("straddles the end", CONSOLE, [memory_end - 8, 16, 0, 0, 0], &[E_ADDRESS]),
        answers("straddles the fault stack", CONSOLE, [layout::DATA_BASE - 8, 16, 0, 0, 0], &[E_ADDRESS]),
        answers("wild, nothing", CONSOLE, [WILD, 0, 0, 0, 0], &[0, E_ADDRESS]),
    ])
}

fn console_wrap() -> Verdict {
    let own = layout::DATA_BASE;
    all([
        answers("wraps to null", CONSOLE, [own, own.wrapping_neg(), 0, 0, 0], &[E_INVALID]),
        answers("wraps to itself", CONSOLE, [own, u64::MAX, 0, 0, 0], &[E_INVALID]),
        answers("starts at the end", CONSOLE, [u64::MAX, 1, 0, 0, 0], &[E_ADDRESS]),
        answers("wraps from the end", CONSOLE, [u64::MAX - 7, 16, 0, 0, 0], &[E_ADDRESS]),
        answers("sum is in memory", CONSOLE, [u64::MAX - 7, own + 16, 0, 0, 0], &[E_INVALID]),
        answers("page below 2^64", CONSOLE, [PAGE.wrapping_neg(), PAGE, 0, 0, 0], &[E_ADDRESS]),
    ])
}

fn console_huge() -> Verdict {
    let heap = guest::registers().heap_start;
    all([hc::CONSOLE_MAX + 1, 1 << 32, (1 << 32) + 1, 1 << 63, u64::MAX]
        .map(|length| answers("length", CONSOLE, [heap, length, 0, 0, 0], &[E_INVALID])))
}

/// Operations on ranges that are not the guest's.
fn memory_wild() -> Verdict {
    let memory_end = guest::registers().memory_end;
    all((hc::memory::DISCARD..=hc::memory::COLD).map(|operation| {
        all([
            all(forbidden().map(|(what, address)| {
                answers(what, MEMORY, [operation, address, PAGE, 0, 0], &[E_ADDRESS])
            })),
            answers(
                "straddles the end",
                MEMORY,
                [operation, memory_end - PAGE, 2 * PAGE, 0, 0],
                &[E_ADDRESS],
            ),
            answers("wraps", MEMORY, [operation, memory_end - PAGE, PAGE.wrapping_neg(), 0, 0], &[E_LIMIT]),
            answers("2^63", MEMORY, [operation, memory_end - PAGE, 1 << 63, 0, 0], &[E_LIMIT]),
            answers("end wraps", MEMORY, [operation, PAGE.wrapping_neg(), 2 * PAGE, 0, 0], &[E_ADDRESS]),
        ])
    }))
}

fn memory_unaligned() -> Verdict {
    let heap = guest::registers().heap_start;
    all((hc::memory::DISCARD..=hc::memory::COLD).map(|operation| {
        all([
            answers("odd address", MEMORY, [operation, heap + 1, PAGE, 0, 0], &[E_INVALID]),
            answers("odd length", MEMORY, [operation, heap, PAGE - 1, 0, 0], &[E_INVALID]),
            answers("both odd", MEMORY, [operation, heap + 8, 8, 0, 0], &[E_INVALID]),
        ])
    }))
}

fn memory_unknown() -> Verdict {
    let heap = guest::registers().heap_start;
    let operations = [hc::memory::COLD + 1, 0x100, 1 << 32, u64::MAX];
    all(operations.map(|operation| answers("operation", MEMORY, [operation, heap, PAGE, 0, 0], &[E_INVALID])))
}

/// Discards single pages of the heap in an odd order, some twice, and looks whether the others kept what they hold.
fn discard_odd() -> Verdict {
    let heap = guest::registers().heap_start;
    let pages = 32;
    for page in 0..pages {
        guest::poke(heap + page * PAGE, 0xa5);
        guest::poke(heap + page * PAGE + PAGE - 1, 0x5a);
    }
    let mut verdict = Verdict::Held;
    for page in (0..pages).rev().filter(|page| page % 3 == 1).chain([1, 4, 1]) {
        let arguments = [hc::memory::DISCARD, heap + page * PAGE, PAGE, 0, 0];
        verdict = all([verdict, answers("one page", MEMORY, arguments, &[0])]);
    }
    verdict =
        all([verdict, answers("no page", MEMORY, [hc::memory::DISCARD, heap, 0, 0, 0], &[0, E_INVALID])]);
    for page in 0..pages {
        let (first, last) = (guest::peek(heap + page * PAGE), guest::peek(heap + page * PAGE + PAGE - 1));
        let expected = if page % 3 == 1 { (0, 0) } else { (0xa5, 0x5a) };
        verdict = all([verdict, check((first, last) == expected, "content behind discards")]);
    }
    verdict
}

/// Discards what others read as well, or what the VMM wrote: text, read-only data, virtual registers, arguments.
fn discard_shared() -> Verdict {
    let text = ins::ud2 as *const () as u64 & !(PAGE - 1);
    let before = guest::peek(text);
    let ranges = [
        ("text", text),
        ("image's start", layout::IMAGE_BASE),
        ("virtual registers", layout::REGISTERS),
        ("arguments", layout::BOOT),
    ];
    let refused = all(ranges.map(|(what, address)| {
        answers(what, MEMORY, [hc::memory::DISCARD, address, PAGE, 0, 0], &[E_ADDRESS, E_INVALID])
    }));
    all([
        refused,
        check(guest::peek(text) == before, "text kept"),
        check(guest::registers().magic == foraker_abi::registers::MAGIC, "virtual registers kept"),
        check(guest_libos::args().nth(1) == Some("discard-shared"), "arguments kept"),
    ])
}

/// Makes a hypercall of four values, and returns by the stack as it then is.
#[unsafe(naked)]
unsafe extern "C" fn discard_and_return(number: u64, operation: u64, address: u64, length: u64) {
    naked_asm!("mov rax, rdi", "mov rdi, rsi", "mov rsi, rdx", "mov rdx, rcx", "out 0x7e, al", "ret")
}

fn resources_wild() -> Verdict {
    use hc::resources::{CORE_START, CORE_STOP, CORE_WAKE, MEMORY};
    let refused = &[E_INVALID, E_LIMIT];
    let entry = ins::ud2 as *const () as u64;
    let stack = second_stack();
    let cores = u64::from(guest::registers().cores);
    all([
        answers("start core 0", RESOURCES, [CORE_START, 0, entry, stack, 0], refused),
        answers("start a core too many", RESOURCES, [CORE_START, cores, entry, stack, 0], refused),
        answers("start core 64", RESOURCES, [CORE_START, 64, entry, stack, 0], refused),
        answers("start core 2^32", RESOURCES, [CORE_START, 1 << 32, entry, stack, 0], refused),
        answers("start core 2^64 - 1", RESOURCES, [CORE_START, u64::MAX, entry, stack, 0], refused),
        answers("stop core 0", RESOURCES, [CORE_STOP, 0, 0, 0, 0], refused),
        answers("wake a core too many", RESOURCES, [CORE_WAKE, cores, 0, 0, 0], refused),
        answers("wake core 64", RESOURCES, [CORE_WAKE, 64, 0, 0, 0], refused),
        answers("wake core 2^32", RESOURCES, [CORE_WAKE, 1 << 32, 0, 0, 0], refused),
        answers("wake core 2^63", RESOURCES, [CORE_WAKE, 1 << 63, 0, 0, 0], refused),
        answers("no memory at all", RESOURCES, [MEMORY, 0, 0, 0, 0], refused),
        answers("memory of 2^63", RESOURCES, [MEMORY, 1 << 63, 0, 0, 0], refused),
        answers("memory of 2^64 - a page", RESOURCES, [MEMORY, 0u64.wrapping_sub(PAGE), 0, 0, 0], refused),
        answers("unknown operation", RESOURCES, [MEMORY + 1, 0, 0, 0, 0], &[E_INVALID]),
        answers("operation 2^32", RESOURCES, [1 << 32, 0, 0, 0, 0], &[E_INVALID]),
    ])
}

/// Gives pages at the end of the heap back. Returns the address of the last byte of them.
fn give_back(pages: u64) -> u64 {
    let r = guest::registers();
    println!("expect");
    let result = call(RESOURCES, [hc::resources::MEMORY, r.memory_size - pages * PAGE, 0, 0, 0]);
    if result != 0 {
        println!("FAIL memory was not given back: {result}");
    }
    r.memory_end - 1
}

/// Gives back and asks for a page, ten thousand times, each time as if the last had been answered.
fn resize_storm() -> Verdict {
    let whole = guest::registers().memory_size;
    let (mut done, mut refused) = (0, 0);
    for n in 0..10_000u64 {
        match call(RESOURCES, [hc::resources::MEMORY, whole - n % 2 * PAGE, 0, 0, 0]) {
            0 => done += 1,
            E_LIMIT => refused += 1,
            _ => return check(false, "a change is done, or there are too many"),
        }
    }
    all([check(done >= 1, "a change is done"), check(refused > 5000, "others have to hear of no more")])
}

/// The top of a page of the heap.
fn second_stack() -> u64 {
    guest::registers().heap_start + 16 * PAGE
}

/// Starts core 1, and waits for what it does.
fn start_core(entry: u64, stack: u64) -> Verdict {
    println!("expect");
    let result = call(RESOURCES, [hc::resources::CORE_START, 1, entry, stack, 0]);
    if result != 0 {
        println!("refused: {result}");
        return check(result == E_ADDRESS, "a core's entry or stack is refused as an address");
    }
    endless(|| call(hc::IDLE, [hc::FOREVER, 0, 0, 0, 0]))
}

fn doorbell_unknown() -> Verdict {
    let allowed = &[0, E_INVALID, E_UNSUPPORTED];
    all([hc::DEVICE_BLOCK, 1 << 31, 1 << 63, u64::MAX, 0]
        .map(|devices| answers("devices", DOORBELL, [devices, 0, 0, 0, 0], allowed)))
}

fn terminate(status: u64) -> Verdict {
    println!("expect");
    let result = call(hc::TERMINATE, [status, 0, 0, 0, 0]);
    println!("FAIL terminate({status:#x}) returned {result}");
    Verdict::Failed
}

/// With interrupts always pending `idle` never waits, and that is all.
fn pending_always() -> Verdict {
    let start = guest_libos::now();
    for _ in 0..1000 {
        guest::control(0).pending.store(u64::MAX, Ordering::SeqCst);
        if call(hc::IDLE, [hc::FOREVER, 0, 0, 0, 0]) != 0 {
            return check(false, "idle returns 0");
        }
    }
    // Nothing made it wait: a thousand waits of a quantum each would be seconds.
    let elapsed = guest_libos::now() - start;
    println!("1000 idles in {} us", elapsed / 1000);
    Verdict::Held
}

/// Fills the slots of all cores, upcalls off, and goes on.
fn control_scribble() -> Verdict {
    for core in 0..u64::from(layout::MAX_CORES) {
        let slot = guest::control(core);
        slot.upcall_enabled.store(0, Ordering::SeqCst);
        slot.pending.store(u64::MAX, Ordering::SeqCst);
        slot.upcall_mask.store(u64::MAX, Ordering::SeqCst);
        slot.upcall_handler.store(u64::MAX, Ordering::SeqCst);
        slot.reserved0.store(u32::MAX, Ordering::SeqCst);
        slot.awaited.store(u64::MAX, Ordering::SeqCst);
        slot.awaited_until.store(u64::MAX >> core, Ordering::SeqCst);
    }
    let verdict = all([
        answers("nop", hc::NOP, [0; 5], &[0]),
        answers("idle", hc::IDLE, [hc::FOREVER, 0, 0, 0, 0], &[0]),
        answers("yield", hc::YIELD, [0; 5], &[0]),
    ]);
    guest::control(0).pending.store(0, Ordering::SeqCst);
    let until = guest_libos::now() + 1_000_000;
    let rests = || answers("idle with a deadline", hc::IDLE, [until, 0, 0, 0, 0], &[0]);
    let mut verdict = all([verdict, rests()]);
    // A frame may have come before: its address may have been another's.
    while guest::control(0).pending.load(Ordering::SeqCst) & interrupt::TIMER == 0
        && guest_libos::now() < until
    {
        guest::control(0).pending.store(0, Ordering::SeqCst);
        verdict = all([verdict, rests()]);
    }
    let pending = guest::control(0).pending.load(Ordering::SeqCst);
    all([verdict, check(pending & interrupt::TIMER != 0, "the timer is pending")])
}

/// Sets an upcall up and makes a hypercall, so that it is delivered: to `handler`, on the stack `stack` if given.
fn upcall(handler: u64, stack: Option<u64>) -> Verdict {
    println!("expect");
    let slot = guest::control(0);
    slot.upcall_handler.store(handler, Ordering::SeqCst);
    slot.upcall_mask.store(u64::MAX, Ordering::SeqCst);
    slot.pending.store(interrupt::WAKE, Ordering::SeqCst);
    slot.upcall_enabled.store(1, Ordering::SeqCst);
    match stack {
        None => {
            call(hc::NOP, [0; 5]);
        }
        Some(stack) => {
            let with_stack: Primitive = hypercall_on_stack;
            // SAFETY: the stack pointer is the case's purpose; it is put back if nothing happens.
            unsafe { with_stack(hc::NOP, stack, 0, 0) };
        }
    }
    Verdict::WentOn
}

/// A hypercall while RSP holds the second argument.
#[unsafe(naked)]
unsafe extern "C" fn hypercall_on_stack(number: u64, stack: u64, _: u64, _: u64) -> u64 {
    naked_asm!("mov rax, rdi", "xchg rsp, rsi", "out 0x7e, al", "nop", "xchg rsp, rsi", "ret")
}

/// A handler that makes itself pending again before it returns.
#[unsafe(naked)]
unsafe extern "C" fn storm_handler() {
    naked_asm!(
        "push rax",
        "mov eax, {control}",
        "mov qword ptr [rax], {wake}",
        "mov dword ptr [rax + 24], 1",
        "pop rax",
        "popfq",
        "ret 128",
        control = const layout::CONTROL,
        wake = const interrupt::WAKE,
    )
}

fn upcall_storm() -> Verdict {
    println!("expect");
    let slot = guest::control(0);
    slot.upcall_handler.store(storm_handler as *const () as u64, Ordering::SeqCst);
    slot.upcall_mask.store(u64::MAX, Ordering::SeqCst);
    slot.pending.store(interrupt::WAKE, Ordering::SeqCst);
    slot.upcall_enabled.store(1, Ordering::SeqCst);
    endless(|| call(hc::NOP, [0; 5]))
}

/// Does it until the VMM ends the guest.
fn endless(mut act: impl FnMut() -> i64) -> Verdict {
    println!("expect");
    loop {
        core::hint::black_box(act());
    }
}
