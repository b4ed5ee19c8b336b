//! Prints the reference chapter of the book: every number, offset and size of the virtual architecture.
//!
//! Values come from the crate as it is compiled, descriptions from the documentation comments in its sources. Each constant
//! and each field has to be named here: one that is missing, or that no longer exists, ends the program.
//! `cargo xtask doc-check` compares its output with the chapter, `cargo xtask doc-check --write` replaces the chapter.

use std::fmt::Write;

use foraker_abi::hypercall::{memory, resources};
use foraker_abi::{VERSION, control, fault, hypercall, interrupt, layout, net, note, registers, ring};

/// A constant's value.
enum Value {
    Number(i128),
    Text(String),
}

/// What a constant of the contract may be.
trait Constant {
    fn value(&self) -> Value;
}

macro_rules! numbers {
    ($($kind:ty),*) => {
        $(impl Constant for $kind {
            fn value(&self) -> Value {
                Value::Number(i128::try_from(*self).expect("the contract's numbers are small"))
            }
        })*
    };
}
numbers!(u8, u16, u32, u64, usize, i64);

impl Constant for &str {
    fn value(&self) -> Value {
        Value::Text(format!("`{self}`"))
    }
}

impl Constant for [u8; 8] {
    fn value(&self) -> Value {
        Value::Text(format!("`{}`", self.escape_ascii()))
    }
}

/// A constant's or a field's name, its values, and what its comment says.
struct Described {
    name: &'static str,
    kind: String,
    text: String,
}

/// A struct of the contract as it is compiled: its name, its bytes, and (name, offset, bytes) of each field.
struct Layout {
    name: &'static str,
    size: usize,
    fields: Vec<(&'static str, usize, usize)>,
}

fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! structure {
    ($module:ident::$name:ident: $($field:ident)*) => {
        Layout {
            name: stringify!($name),
            size: size_of::<$module::$name>(),
            fields: vec![$((
                stringify!($field),
                core::mem::offset_of!($module::$name, $field),
                size_of_field(|s: &$module::$name| &s.$field),
            )),*],
        }
    };
}

macro_rules! constants {
    ($module:ident: $($name:ident)*) => {
        [$((stringify!($name), Constant::value(&$module::$name))),*]
    };
}

/// A source file's documentation.
#[derive(Default)]
struct Source {
    /// Of the module.
    module: String,
    /// (inner module or "", constant).
    constants: Vec<(&'static str, Described)>,
    /// (name, documentation, fields).
    structures: Vec<(&'static str, String, Vec<Described>)>,
    /// (inner module, documentation).
    modules: Vec<(&'static str, String)>,
}

impl Source {
    /// Reads the comments of public constants, structs and fields. The contract's sources are formatted, an item to a line.
    fn read(text: &'static str) -> Source {
        let mut source = Source::default();
        let mut comment = Vec::new();
        let mut inside = "";
        let mut structure = false;
        for line in text.lines() {
            let (indented, line) = (line.starts_with(' '), line.trim());
            if let Some(text) = line.strip_prefix("//!") {
                source.module.push_str(&plain(text.strip_prefix(' ').unwrap_or(text)));
                source.module.push('\n');
            } else if let Some(text) = line.strip_prefix("///") {
                comment.push(text.strip_prefix(' ').unwrap_or(text));
            } else if line.starts_with("#[") {
                // Attributes stand between a comment and its item.
            } else {
                let text = plain(&std::mem::take(&mut comment).join("\n"));
                let after = |prefix: &str| line.strip_prefix(prefix);
                let named = |rest: &'static str, end| rest.split_once(end).map_or("", |(name, _)| name);
                if let Some(rest) = after("pub const ").filter(|rest| !rest.starts_with("fn ")) {
                    let (name, rest) = rest.split_once(": ").expect("a constant has a type");
                    let kind = rest.split_once(" =").map_or(rest, |(kind, _)| kind).to_owned();
                    source.constants.push((inside, Described { name, kind, text }));
                } else if let Some(rest) = after("pub struct ") {
                    source.structures.push((named(rest, " {"), text, Vec::new()));
                    structure = true;
                } else if let Some(rest) = after("pub mod ").filter(|rest| rest.ends_with('{')) {
                    inside = named(rest, " {");
                    source.modules.push((inside, text));
                } else if line == "}" && !indented {
                    (structure, inside) = (false, "");
                } else if let Some(rest) = after("pub ").filter(|_| structure) {
                    let (name, kind) = rest.split_once(": ").expect("a field has a type");
                    let kind = kind.trim_end_matches(',').to_owned();
                    let fields = source.structures.last_mut().map(|(_, _, fields)| fields);
                    fields.expect("a field is in a struct").push(Described { name, kind, text });
                }
            }
        }
        source
    }

    fn structure(&self, name: &str) -> &(&'static str, String, Vec<Described>) {
        let found = self.structures.iter().find(|(n, ..)| *n == name);
        found.unwrap_or_else(|| panic!("no struct {name} in the sources"))
    }

    /// The constants of an inner module (or of the file itself, "") beside their values, in the order of the source.
    fn constants<'a>(
        &'a self,
        inside: &str,
        values: &'a [(&'static str, Value)],
    ) -> Vec<(&'a Described, &'a Value)> {
        let here: Vec<_> =
            self.constants.iter().filter(|(module, _)| *module == inside).map(|(_, c)| c).collect();
        for (name, _) in values {
            assert!(here.iter().any(|c| c.name == *name), "{name} is not in the sources");
        }
        let value = |c: &Described| values.iter().find(|(name, _)| *name == c.name).map(|(_, value)| value);
        // Tables of tables have a section of their own.
        let simple = here.into_iter().filter(|c| !c.kind.starts_with("[("));
        simple
            .map(|c| (c, value(c).unwrap_or_else(|| panic!("name the constant {} in {}", c.name, file!()))))
            .collect()
    }
}

/// Links to other items become their names.
fn plain(text: &str) -> String {
    text.replace("[`", "`").replace("`]", "`").replace("`crate::", "`")
}

/// On one line, as a cell of a table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// A number as a reader wants it: bits by their place, addresses in hexadecimal, sizes with their unit.
fn number(c: &Described, value: i128) -> String {
    let bit = ["CPU_", "FEATURE_", "FLAG_", "DEVICE_", "BIT_"].iter().any(|p| c.name.starts_with(p));
    if bit && value.count_ones() == 1 {
        return format!("`{value:#x}` (bit {})", value.trailing_zeros());
    }
    let size = c.text.contains("ytes");
    if size && value >= 1024 {
        let (unit, name) = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
            .into_iter()
            .find(|(unit, _)| value % unit == 0)
            .unwrap_or((1, ""));
        return format!(
            "{value}{}",
            if unit > 1 { format!(" ({} {name})", value / unit) } else { String::new() }
        );
    }
    let hexadecimal = ["PORT", "OFFSET", "KERNEL_", "USER_"].iter().any(|part| c.name.contains(part));
    if value > 0 && (hexadecimal || value >= 0x1000) { format!("`{value:#x}`") } else { value.to_string() }
}

/// A table of constants.
fn table(out: &mut String, rows: &[(&Described, &Value)]) {
    out.push_str("| name | value | meaning |\n|---|---|---|\n");
    for (c, value) in rows {
        let value = match value {
            Value::Number(n) => number(c, *n),
            Value::Text(text) => text.clone(),
        };
        let _ = writeln!(out, "| `{}` | {value} | {} |", c.name, cell(&c.text));
    }
    out.push('\n');
}

/// A table of single bits.
fn bits(out: &mut String, rows: &[(&Described, &Value)]) {
    out.push_str("| bit | name | meaning |\n|---|---|---|\n");
    for (c, value) in rows {
        let Value::Number(value) = value else { panic!("{} is no bit", c.name) };
        if value.count_ones() == 1 {
            let _ = writeln!(out, "| {} | `{}` | {} |", value.trailing_zeros(), c.name, cell(&c.text));
        }
    }
    out.push('\n');
}

/// A table of a struct's fields. `base` is added to their offsets.
fn fields(out: &mut String, source: &Source, layout: &Layout, base: usize) {
    let (_, _, described) = source.structure(layout.name);
    let names = |all: &mut dyn Iterator<Item = &'static str>| all.collect::<Vec<_>>();
    assert_eq!(
        names(&mut described.iter().map(|f| f.name)),
        names(&mut layout.fields.iter().map(|(name, ..)| *name)),
        "fields of {} in the sources, and those named here",
        layout.name
    );
    out.push_str("| offset | bytes | field | type | meaning |\n|---|---|---|---|---|\n");
    for (f, (name, offset, size)) in described.iter().zip(&layout.fields) {
        let (offset, text) = (base + offset, cell(&f.text));
        let _ = writeln!(out, "| `{offset:#05x}` | {size} | `{name}` | `{}` | {text} |", f.kind);
    }
    out.push('\n');
}

fn heading(out: &mut String, title: &str, text: &str) {
    let _ = write!(out, "## {title}\n\n{}\n\n", text.trim());
}

fn address_space(out: &mut String) {
    let source = Source::read(include_str!("../src/layout.rs"));
    heading(out, "Address space", &source.module);
    let values = constants!(layout:
        PAGE_SIZE LARGE_PAGE_SIZE SUPERVISOR_BASE IDT GDT FAULT_STUBS FAULT_STUB_SIZE VECTORS SYSCALL_STUB
        TASK_STATES TASK_STATE_SIZE SUPERVISOR_END VISIT IMAGE_BASE PRIVATE_BASE REGISTERS CONTROL NET_RX NET_TX
        FAULT_STACK FAULT_FRAME_SIZE BLOCK BOOT BOOT_SIZE SMALL_BOOT DATA_BASE MAX_CORES MIN_MEMORY MAX_MEMORY
        DEFAULT_STACK MAX_STACK KERNEL_CODE KERNEL_DATA USER_DATA USER_CODE
    );
    let rows = source.constants("", &values);
    // Sizes can be as large as addresses; their comments say what they are.
    let space = i128::from(layout::SUPERVISOR_BASE)..i128::from(layout::MAX_MEMORY);
    let is_address = |c: &Described, value: &Value| {
        matches!(value, Value::Number(n) if space.contains(n)) && !c.text.starts_with("Bytes of")
    };
    out.push_str("### Addresses\n\n| address | name | meaning |\n|---|---|---|\n");
    for (c, value) in rows.iter().filter(|(c, value)| is_address(c, value)) {
        let Value::Number(value) = value else { panic!("{} is no address", c.name) };
        let _ = writeln!(out, "| `{value:#010x}` | `{}` | {} |", c.name, cell(&c.text));
    }
    out.push_str("\n### Sizes, limits and selectors\n\n");
    let rest: Vec<_> = rows.into_iter().filter(|(c, value)| !is_address(c, value)).collect();
    table(out, &rest);
}

fn hypercalls(out: &mut String) {
    let source = Source::read(include_str!("../src/hypercall.rs"));
    heading(out, "Hypercalls", &source.module);
    let values = constants!(hypercall:
        PORT DOORBELL_PORT FAULT_PORT NOP IDLE YIELD TERMINATE CONSOLE DOORBELL READY MEMORY RESOURCES
        COUNT READY_AGAIN FOREVER CONSOLE_MAX DEVICE_NET DEVICE_BLOCK E_UNKNOWN E_INVALID E_ADDRESS E_LIMIT
        E_UNSUPPORTED MEMORY_MAX
    );
    let rows = source.constants("", &values);
    let number = |value: &Value| match value {
        Value::Number(n) => *n,
        Value::Text(_) => panic!("a hypercall has a number"),
    };
    let first = rows.iter().position(|(c, _)| c.name == "NOP").expect("the first call");
    let calls = rows.iter().position(|(c, _)| c.name == "COUNT").expect("the end of the calls") - first;
    out.push_str("### Ports\n\n");
    table(out, &rows[..first]);
    out.push_str("### Calls\n\n| RAX | name | what it does |\n|---|---|---|\n");
    for (at, (c, value)) in rows.iter().skip(first).take(calls).enumerate() {
        assert_eq!(
            number(value),
            i128::try_from(at).expect("a small number"),
            "{} stands out of order",
            c.name
        );
        let _ = writeln!(out, "| {at} | `{}` | {} |", c.name, cell(&c.text));
    }
    out.push_str("\nEvery other number is answered with `E_UNKNOWN`.\n\n### Results\n\n| value | name | meaning |\n|---|---|---|\n");
    out.push_str("| 0 and above | | The result of the call. |\n");
    let (errors, rest): (Vec<_>, Vec<_>) =
        rows.into_iter().skip(first + calls + 1).partition(|(c, _)| c.name.starts_with("E_"));
    for (c, value) in errors {
        let _ = writeln!(out, "| {} | `{}` | {} |", number(value), c.name, cell(&c.text));
    }
    out.push_str("\n### Constants\n\n");
    table(out, &rest);
    let of_memory = constants!(memory: DISCARD PIN UNPIN WILL_NEED COLD);
    let of_resources = constants!(resources: CORE_START CORE_STOP CORE_WAKE MEMORY);
    let operations = [("memory", &of_memory[..]), ("resources", &of_resources)];
    assert_eq!(operations.len(), source.modules.len(), "groups of operations");
    for (module, values) in operations {
        let (_, text) =
            source.modules.iter().find(|(name, _)| *name == module).expect("a group of operations");
        let _ = write!(
            out,
            "### Operations of `{module}`\n\n{}\n\n| RDI | name | what it does |\n|---|---|---|\n",
            text.trim()
        );
        for (c, value) in source.constants(module, values) {
            let _ = writeln!(out, "| {} | `{}` | {} |", number(value), c.name, cell(&c.text));
        }
        out.push('\n');
    }
}

fn interrupts(out: &mut String) {
    let source = Source::read(include_str!("../src/interrupt.rs"));
    heading(out, "Interrupts", &source.module);
    let values = constants!(interrupt: TIMER NET_RX NET_TX BLOCK STOP PREEMPT WAKE RESOURCES ALL);
    bits(out, &source.constants("", &values));
    let _ = write!(out, "All other bits are reserved; `ALL` is `{:#x}`.\n\n", interrupt::ALL);
}

fn control_page(out: &mut String) {
    let source = Source::read(include_str!("../src/control.rs"));
    heading(out, "Control page", &source.module);
    let layout = structure!(control::CoreControl:
        pending upcall_mask upcall_handler upcall_enabled reserved0 awaited awaited_until reserved1
    );
    let (_, text, _) = source.structure(layout.name);
    let _ = write!(out, "### `CoreControl`, {} bytes\n\n{text}\n\n", layout.size);
    fields(out, &source, &layout, 0);
    let values = constants!(control: RED_ZONE);
    table(out, &source.constants("", &values));
}

fn virtual_registers(out: &mut String) {
    let source = Source::read(include_str!("../src/registers.rs"));
    heading(out, "Virtual registers", &source.module);
    let page = structure!(registers::Registers:
        magic abi_version cores guest_id incarnation entropy memory_size heap_start memory_end stack_top
        cpu_features memory_start reserved0 time net boot schedule resources counters
    );
    let _ = write!(
        out,
        "The page starts at `REGISTERS` (`{:#x}`). Offsets are from its start.\n\n",
        layout::REGISTERS
    );
    fields(out, &source, &page, 0);
    let parts = [
        structure!(registers::Time:
            sequence reserved multiplier base_tsc base_ns wall_offset_ns tsc_hz reserved1
        ),
        structure!(registers::Net:
            present features mac mtu ipv4 gateway4 dns4 prefix4 prefix6 reserved0 ipv6 gateway6
        ),
        structure!(registers::Boot: argument_count environment_count size offset),
        structure!(registers::Schedule: quantum_end look_ns immediate running cpu_ns),
        structure!(registers::Resources:
            memory_provisioned memory_allocated memory_resident cpu_provisioned cores_allocated
        ),
        structure!(registers::Counters:
            exits rx_frames rx_bytes tx_frames tx_bytes rx_dropped tx_dropped console_dropped
        ),
    ];
    for part in &parts {
        let (_, text, _) = source.structure(part.name);
        let lower = part.name.to_lowercase();
        let base = page.fields.iter().find(|(name, ..)| *name == lower).map(|(_, offset, _)| *offset);
        let base = base.unwrap_or_else(|| panic!("{} is no part of the page", part.name));
        let _ = write!(out, "### `{lower}`, {} bytes\n\n{text}\n\n", part.size);
        fields(out, &source, part, base);
    }
    assert_eq!(source.structures.len(), parts.len() + 1, "structs of the virtual registers");
    let values = constants!(registers:
        MAGIC CPU_AVX CPU_AVX2 CPU_AES CPU_RDRAND CPU_FSGSBASE CPU_ERMS CPU_AVX512
    );
    let rows = source.constants("", &values);
    let _ =
        write!(out, "### Values\n\n`MAGIC` is `{:#x}`: the bytes `FORAKER` and a NUL.\n\n", registers::MAGIC);
    assert_eq!(registers::MAGIC.to_le_bytes(), *b"FORAKER\0");
    bits(out, &rows[1..]);
}

fn rings(out: &mut String) {
    let source = Source::read(include_str!("../src/ring.rs"));
    heading(out, "Rings", &source.module);
    let values = constants!(ring:
        QUEUE_SIZE DESC_NEXT DESC_WRITE NO_NOTIFY NO_INTERRUPT DESC_OFFSET AVAIL_OFFSET USED_OFFSET
        RING_SIZE
    );
    table(out, &source.constants("", &values));
    let parts = [
        structure!(ring::Descriptor: address length flags next),
        structure!(ring::Avail: flags index ring),
        structure!(ring::Used: flags index ring),
        structure!(ring::UsedElement: id length),
    ];
    assert_eq!(source.structures.len(), parts.len(), "structs of a ring");
    for part in &parts {
        let (_, text, _) = source.structure(part.name);
        let _ = write!(out, "### `{}`, {} bytes\n\n{text}\n\n", part.name, part.size);
        fields(out, &source, part, 0);
    }
}

fn ethernet(out: &mut String) {
    let source = Source::read(include_str!("../src/net.rs"));
    heading(out, "Virtual ethernet", &source.module);
    let layout = structure!(net::Header: flags gso_type hdr_len gso_size csum_start csum_offset num_buffers);
    let (_, text, _) = source.structure(layout.name);
    let _ = write!(out, "### `Header`, {} bytes\n\n{text}\n\n", layout.size);
    fields(out, &source, &layout, 0);
    let values = constants!(net:
        HEADER_SIZE NEEDS_CSUM DATA_VALID GSO_NONE GSO_TCPV4 GSO_TCPV6 ETHERNET_HEADER MAX_FRAME
        MIN_RX_BUFFER MAX_CHAIN FEATURE_CSUM FEATURE_TSO
    );
    table(out, &source.constants("", &values));
}

fn faults(out: &mut String) {
    let source = Source::read(include_str!("../src/fault.rs"));
    heading(out, "Faults", &source.module);
    out.push_str("| vector | mnemonic | name | error code |\n|---|---|---|---|\n");
    for (vector, mnemonic, name, code) in fault::EXCEPTIONS {
        assert_eq!(fault::ERROR_CODE_VECTORS >> vector & 1 == 1, code, "error code of vector {vector}");
        let _ = writeln!(out, "| {vector} | `{mnemonic}` | {name} | {} |", if code { "yes" } else { "no" });
    }
    out.push('\n');
    let values = constants!(fault: ERROR_CODE_VECTORS DB UD BP OF GP PF PF_PRESENT PF_WRITE PF_USER PF_FETCH);
    table(out, &source.constants("", &values));
}

fn image_note(out: &mut String) {
    let source = Source::read(include_str!("../src/note.rs"));
    heading(out, "Image note", &source.module);
    let values = constants!(note: NAME TYPE MANIFEST_SECTION FLAG_NET);
    table(out, &source.constants("", &values));
    let parts = [
        structure!(note::Note: name_size descriptor_size note_type name descriptor),
        structure!(note::Descriptor: abi_version flags stack_size memory),
    ];
    assert_eq!(source.structures.len(), parts.len(), "structs of the note");
    for part in &parts {
        let (_, text, _) = source.structure(part.name);
        let _ = write!(out, "### `{}`, {} bytes\n\n{text}\n\n", part.name, part.size);
        fields(out, &source, part, 0);
    }
}

fn main() {
    let source = Source::read(include_str!("../src/lib.rs"));
    let mut out = String::new();
    out.push_str("<!-- Generated from the crate `abi`: change its sources, then run `cargo xtask doc-check --write`. -->\n\n");
    let _ = write!(
        out,
        "# Reference: the virtual architecture, version {VERSION}\n\n{}\n\n",
        source.module.trim()
    );
    out.push_str(
        "This chapter is generated from the crate `abi`: numbers from the compiled crate, descriptions from its comments. \
         [The virtual architecture](../architecture.md) explains the ideas.\n\n",
    );
    assert_eq!(source.constants("", &[("VERSION", VERSION.value())]).len(), 1);
    for section in [
        address_space,
        hypercalls,
        interrupts,
        control_page,
        virtual_registers,
        rings,
        ethernet,
        faults,
        image_note,
    ] {
        section(&mut out);
    }
    println!("{}", out.trim_end());
}
