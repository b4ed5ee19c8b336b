//! Writes the seeds in `corpus` anew: a few inputs for each target that reach its different parts, small enough to be
//! read.

use std::fs;
use std::io;
use std::path::Path;

use foraker_abi::layout::{DATA_BASE, IMAGE_BASE};
use foraker_abi::net::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, HEADER_SIZE, Header, NEEDS_CSUM};
use foraker_abi::note::Note;
use foraker_abi::ring::{DESC_NEXT, DESC_WRITE};
use foraker_fuzz::guest_memory::op as call;
use foraker_fuzz::rings::{mode, op};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let targets = [
        ("image", images()),
        ("frame", frames()),
        ("rings", drivers()),
        ("guest_memory", calls()),
        ("http", requests()),
    ];
    for (target, seeds) in targets {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        for (name, bytes) in seeds {
            fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}

type Seeds = Vec<(&'static str, Vec<u8>)>;

/// Bytes, one value behind the other.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn put<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn u8(self, value: u8) -> Self {
        self.put([value])
    }

    fn u16(self, value: u16) -> Self {
        self.put(value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.put(value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.put(value.to_le_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// A segment to be loaded: flags, address, bytes in memory.
type Load = (u32, u64, u64);

const TEXT: Load = (5, IMAGE_BASE, 0x1800);
const READ_ONLY: Load = (4, IMAGE_BASE + 0x2000, 0x100);
const DATA: Load = (6, DATA_BASE, 0x5000);

/// An ELF file of 64-bit little-endian with a note and, if it is not empty, a manifest.
fn elf(loads: &[Load], note: Note, manifest: &str) -> Vec<u8> {
    let headers = loads.len() + 1;
    let note_at = 64 + 56 * headers as u64;
    let content_at = note_at + size_of::<Note>() as u64;
    let names = b"\0.foraker.manifest\0.shstrtab\0";
    let manifest_at = content_at + 16;
    let names_at = manifest_at + manifest.len() as u64;
    let sections_at = names_at + names.len() as u64;
    let sections = if manifest.is_empty() { 0 } else { 3 };

    let header = Bytes::default().put([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let header = header.u16(2).u16(62).u32(1).u64(IMAGE_BASE).u64(64).u64(sections_at).u32(0);
    let mut file = header.u16(64).u16(56).u16(headers as u16).u16(64).u16(sections).u16(sections / 3 * 2);
    for &(flags, address, size) in loads {
        file = file.u32(1).u32(flags).u64(content_at).u64(address).u64(address);
        file = file.u64(16.min(size)).u64(size).u64(4096);
    }
    let note_size = size_of::<Note>() as u64;
    file = file.u32(4).u32(4).u64(note_at).u64(0).u64(0).u64(note_size).u64(note_size).u64(4);
    file = file.u32(note.name_size).u32(note.descriptor_size).u32(note.note_type).put(note.name);
    for word in note.descriptor {
        file = file.u32(word);
    }
    file = file.put([0x90; 16]);
    if sections > 0 {
        file = file.bytes(manifest.as_bytes()).bytes(names).put([0; 64]);
        for (name, kind, at, size) in
            [(1, 1, manifest_at, manifest.len() as u64), (19, 3, names_at, names.len() as u64)]
        {
            file = file.u32(name).u32(kind).u64(0).u64(0).u64(at).u64(size).u32(0).u32(0).u64(1).u64(0);
        }
    }
    file.0
}

fn images() -> Seeds {
    let all = [TEXT, READ_ONLY, DATA];
    vec![
        ("smallest", elf(&[TEXT], Note::new(0, 0, 0), "")),
        ("usual", elf(&all, Note::new(1, 64 << 10, 4 << 20), "program = \"hello\"\n")),
        ("little-memory", elf(&all, Note::new(0, 0, 1 << 12), "")),
        ("large-stack", elf(&all, Note::new(0, 3 << 20, 6 << 20), "")),
        // What is needed reaches just beyond the first large page, where one more table is needed.
        ("one-table-more", elf(&all, Note::new(0, 0x1e_7000, 128 << 10), "")),
        ("large-data", elf(&[TEXT, (6, DATA_BASE, 2 << 20)], Note::new(0, 0, 8 << 20), "")),
        ("large-text", elf(&[(5, IMAGE_BASE, 5 << 20), DATA], Note::new(0, 0, 2 << 20), "")),
        ("apart", elf(&[DATA, (6, DATA_BASE + 0x20_0000, 1), TEXT], Note::new(0, 1, 0x60_0000), "")),
        ("overlap", elf(&[TEXT, (4, IMAGE_BASE + 0x1000, 1)], Note::new(0, 0, 0), "")),
        ("writable-text", elf(&[(7, IMAGE_BASE, 0x1000)], Note::new(0, 0, 0), "")),
    ]
}

/// Ethernet address of host (1) or guest.
fn mac(number: u8) -> [u8; 6] {
    [2, 0xf0, 0, 0, 0, number]
}

fn ipv4_address(number: u8) -> [u8; 4] {
    [10, 213, 77, number]
}

fn ipv6_address(number: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]
}

fn ethernet(to: [u8; 6], from: u8, ethertype: u16) -> Bytes {
    Bytes::default().put(to).put(mac(from)).put(ethertype.to_be_bytes())
}

fn ipv4(from: u8, to: u8, protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let total = 20 + body.len() as u16;
    let packet = ethernet(mac(to), from, 0x0800).put([0x45, 0]).put(total.to_be_bytes()).u16(0);
    let packet = packet.put(fragment.to_be_bytes()).put([64, protocol, 0, 0]);
    packet.put(ipv4_address(from)).put(ipv4_address(to)).bytes(body).0
}

fn ipv6(to_mac: [u8; 6], from: u8, to: [u8; 16], next: u8, body: &[u8]) -> Vec<u8> {
    let length = body.len() as u16;
    let packet = ethernet(to_mac, from, 0x86dd).put([0x60, 0, 0, 0]).put(length.to_be_bytes());
    packet.put([next, 255]).put(ipv6_address(from)).put(to).bytes(body).0
}

fn arp(operation: u8, from: u8, about: u8) -> Vec<u8> {
    let frame = ethernet([0xff; 6], from, 0x0806).put([0, 1, 8, 0, 6, 4, 0, operation]);
    frame.put(mac(from)).put(ipv4_address(from)).put([0; 6]).put(ipv4_address(about)).0
}

fn tcp(payload: usize) -> Vec<u8> {
    let mut body = vec![0; 20 + payload];
    body[12] = 0x50;
    body
}

fn udp(payload: usize) -> Vec<u8> {
    Bytes::default().put([0, 1, 0, 2]).put((8 + payload as u16).to_be_bytes()).bytes(&vec![0; 2 + payload]).0
}

fn discovery(kind: u8, target: u8) -> Vec<u8> {
    let message = Bytes::default().put([kind, 0, 0, 0, 0, 0, 0, 0]).put(ipv6_address(target));
    message.put([1, 1]).put(mac(target)).0
}

fn frames() -> Seeds {
    const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let seed = |mode: u8, header: Header, frame: Vec<u8>| {
        Bytes::default().u8(mode).put::<HEADER_SIZE>(header.to_bytes()).bytes(&frame).0
    };
    let plain = Header::default();
    let checksum =
        |start, offset| Header { flags: NEEDS_CSUM, csum_start: start, csum_offset: offset, ..plain };
    let gso = |gso_type, hdr_len, start| Header { gso_type, hdr_len, gso_size: 100, ..checksum(start, 16) };
    assert_eq!(plain.gso_type, GSO_NONE);
    let multicast = [0x33, 0x33, 0, 0, 0, 1];
    // Destination options, then a fragment's header, then TCP.
    let extended = [&[44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 9][..], &tcp(8)].concat();
    vec![
        ("udp-to-host", seed(0, plain, ipv4(2, 1, 17, 0, &udp(5)))),
        ("udp-to-guest", seed(1, checksum(34, 6), ipv4(2, 3, 17, 0, &udp(5)))),
        ("tcp-to-stranger", seed(1, checksum(34, 16), ipv4(2, 4, 6, 0, &tcp(5)))),
        ("tcp-segments", seed(0, gso(GSO_TCPV4, 54, 34), ipv4(2, 1, 6, 0, &tcp(600)))),
        ("tcp-of-many-segments", seed(0xf0, gso(GSO_TCPV4, 54, 34), ipv4(2, 1, 6, 0, &tcp(600)))),
        ("fragment", seed(0, plain, ipv4(2, 1, 17, 0x2000, &udp(16)))),
        ("last-fragment", seed(0, plain, ipv4(2, 1, 17, 0x0003, &[1; 16]))),
        ("from-the-host", seed(1, plain, ipv4(1, 3, 17, 0, &udp(5)))),
        ("from-a-stranger-by-the-host", seed(1, plain, ipv4(4, 3, 17, 0, &udp(5)))),
        ("arp-for-host", seed(0, plain, arp(1, 2, 1))),
        ("arp-for-guest", seed(2, plain, arp(1, 3, 2))),
        ("arp-for-stranger", seed(1, plain, arp(1, 2, 4))),
        ("arp-reply", seed(0, plain, arp(2, 2, 3))),
        ("arp-from-host", seed(1, plain, arp(1, 1, 4))),
        ("ipv6-tcp", seed(0, gso(GSO_TCPV6, 74, 54), ipv6(mac(1), 2, ipv6_address(1), 6, &tcp(300)))),
        ("ipv6-extended", seed(0, plain, ipv6(mac(3), 2, ipv6_address(3), 60, &extended))),
        ("ipv6-to-stranger", seed(1, plain, ipv6(mac(1), 2, ipv6_address(4), 17, &udp(4)))),
        ("solicitation", seed(0, plain, ipv6(multicast, 2, ALL_NODES, 58, &discovery(135, 3)))),
        ("solicitation-for-host", seed(0, plain, ipv6(multicast, 2, ALL_NODES, 58, &discovery(135, 1)))),
        ("solicitation-from-host", seed(1, plain, ipv6(multicast, 1, ALL_NODES, 58, &discovery(135, 4)))),
        ("advertisement", seed(0, plain, ipv6(multicast, 2, ALL_NODES, 58, &discovery(136, 3)))),
        ("router-advertisement", seed(0, plain, ipv6(multicast, 2, ALL_NODES, 58, &discovery(134, 2)))),
        ("echo", seed(0, plain, ipv6(mac(1), 2, ipv6_address(1), 58, &[128, 0, 0, 0, 0, 0, 0, 0]))),
        // Neighbour discovery in a packet of no bytes: what follows it is padding.
        ("padding", seed(1, plain, [ipv6(mac(3), 2, ipv6_address(3), 58, &[]), discovery(135, 3)].concat())),
        ("ethertype", seed(0, plain, ethernet(mac(1), 2, 0x88cc).put([0; 46]).0)),
    ]
}

/// Rings, as programs name them.
const RX: u8 = 0;
const TX: u8 = 1;

/// Places, by their number.
const TO_DATA: u8 = 1;
const TO_END: u8 = 2;
const TO_TX: u8 = 4;
const TO_BOOT: u8 = 6;
const TO_TEXT: u8 = 8;

impl Bytes {
    fn driver(mode: u8, started: u16) -> Self {
        Bytes::default().u8(mode).u16(started)
    }

    fn descriptor(self, ring: u8, index: u8, to: (u8, i32, u32), flags: u16, next: u16) -> Self {
        let (place, distance, length) = to;
        let operation = self.u8(op::DESCRIPTOR).u8(ring).u8(index).u8(place);
        operation.u32(distance.cast_unsigned()).u32(length).u16(flags).u16(next)
    }

    fn entry(self, ring: u8, slot: u8, head: u16) -> Self {
        self.u8(op::ENTRY).u8(ring).u8(slot).u16(head)
    }

    fn advance(self, ring: u8, count: u8) -> Self {
        self.u8(op::ADVANCE).u8(ring).u8(count)
    }

    fn give(self, size: u16, count: u8) -> Self {
        self.u8(op::GIVE).u16(size).u8(count)
    }

    fn send(self, kind: u8, size: u16, piece: u16) -> Self {
        self.u8(op::SEND).u8(kind).u16(size).u16(piece)
    }

    fn host(self, kind: u8, size: u16) -> Self {
        self.u8(op::HOST).u8(kind).u16(size)
    }

    fn transmit(self) -> Self {
        self.u8(op::TRANSMIT).u8(200)
    }

    fn receive(self) -> Self {
        self.u8(op::RECEIVE).u8(200)
    }
}

fn drivers() -> Seeds {
    let data = |length| (TO_DATA, 0, length);
    let good = |mode, started| {
        let sent = Bytes::driver(mode, started).give(2048, 100).send(0, 100, 0).send(4, 50, 20);
        let sent = sent.send(1, 9000, 4096).send(5, 4000, 700).send(2, 0, 0).send(3, 60, 0).transmit();
        let received = sent.host(0, 100).host(1, 30_000).host(2, 90).host(4, 0).host(3, 9).receive();
        received.u8(op::NEIGHBOUR).u16(40).u8(op::LOOK).u8(1).u8(op::WAIT).u16(500).receive().transmit()
    };
    let scattered = |size, count| {
        let given = Bytes::driver(mode::ALONE, 0).give(size, count).host(1, 30_000).host(1, 60_000);
        given.host(0, 17_000).host(4, 0).host(1, 50_000).host(3, 20_000).receive().transmit().receive()
    };
    let meddled = |ring: u16, value| {
        let given = Bytes::driver(mode::ALONE, 0).give(16_384, 100).host(1, 30_000).host(1, 60_000);
        let meddled = given.u8(op::MEDDLE).u16(ring + 0x1002).u16(value).u8(op::MEDDLE).u16(ring).u16(value);
        meddled.send(0, 1400, 100).send(1, 5000, 1000).transmit().receive().transmit()
    };
    // Headers from data, and the payload from elsewhere.
    let headed = |place, distance, length: u32| {
        let frame = [&[0; HEADER_SIZE][..], &ipv4(2, 1, 17, 0, &udp(length as usize))].concat();
        let head = &frame[..frame.len() - length as usize];
        let set = Bytes::driver(0, 0).u8(op::DATA).u32(0).u8(head.len() as u8).bytes(head);
        let set = set.descriptor(TX, 0, data(head.len() as u32), DESC_NEXT, 1);
        let set = set.descriptor(TX, 1, (place, distance, length), 0, 0);
        set.entry(TX, 0, 0).advance(TX, 1).transmit().0
    };
    let given = |place, distance, length| {
        let set = Bytes::driver(0, 0).descriptor(RX, 0, (place, distance, length), DESC_WRITE, 0);
        set.entry(RX, 0, 0).advance(RX, 1).host(0, 1400).receive().0
    };
    vec![
        ("good", good(0, 0).0),
        ("wraps", good(0, 65_500).0),
        ("limited", good(mode::LIMITED, 0).send(1, 60_000, 0).transmit().0),
        ("patient", good(mode::LIMITED | mode::PATIENT, 0).send(1, 60_000, 0).transmit().0),
        ("divided", good(mode::DIVIDED, 0).0),
        ("again", good(0, 7).u8(op::AGAIN).give(2048, 100).send(0, 9, 0).transmit().host(0, 1).receive().0),
        ("scattered", scattered(16_384, 200).0),
        ("scattered-little", scattered(2048, 60).0),
        ("full", Bytes::driver(0, 0).host(0, 100).host(2, 100).receive().u8(op::WAIT).u16(300).receive().0),
        ("meddles", meddled(0, 0x7fff).0),
        ("meddles-sending", meddled(0x2000, 300).0),
        ("index-jump", Bytes::driver(0, 0).u8(op::INDEX).u8(TX).u16(400).transmit().0),
        ("no-descriptor", Bytes::driver(0, 0).entry(TX, 0, 256).advance(TX, 1).transmit().0),
        ("loop", Bytes::driver(0, 0).descriptor(TX, 0, data(1), DESC_NEXT, 0).advance(TX, 1).transmit().0),
        ("text", Bytes::driver(0, 0).descriptor(TX, 0, (TO_TEXT, 0, 99), 0, 0).advance(TX, 1).transmit().0),
        ("sends-what-is-beyond", headed(TO_END, -54, 200)),
        ("sends-fault-stack", headed(TO_DATA, -1000, 900)),
        ("receives-beyond", given(TO_END, -300, 2048)),
        ("receives-before", given(TO_DATA, -100, 2048)),
        ("receives-to-text", given(TO_TEXT, 0, 2048)),
        ("receives-to-boot", given(TO_BOOT, 0, 2048)),
        ("receives-beyond-text", given(TO_TEXT, 8 << 10, 2048)),
        ("rings-as-buffers", {
            let to = |distance| (TO_TX, distance, 4096);
            let set = Bytes::driver(mode::ALONE, 0).descriptor(RX, 0, to(0), DESC_WRITE, 0);
            let set = set.entry(RX, 0, 0).entry(RX, 1, 0).advance(RX, 40).host(0, 3000).host(1, 9000);
            set.receive().descriptor(TX, 0, to(-0x2000), 0, 0).advance(TX, 1).transmit().0
        }),
        ("written-frame", {
            let frame = [&[0; HEADER_SIZE][..], &ipv4(2, 1, 17, 0, &udp(5))].concat();
            let set = Bytes::driver(0, 0).u8(op::DATA).u32(0).u8(frame.len() as u8).bytes(&frame);
            let set = set.descriptor(TX, 0, data(30), DESC_NEXT, 1);
            let rest = frame.len() as u32 - 30;
            set.descriptor(TX, 1, (TO_DATA, 30, rest), 0, 0).entry(TX, 0, 0).advance(TX, 1).transmit().0
        }),
        ("poke", Bytes::driver(0, 0).u8(op::POKE).u16(0x3002).u16(1).transmit().0),
    ]
}

impl Bytes {
    fn at(self, place: u8, distance: i64) -> Self {
        self.u8(place).u64(distance.cast_unsigned())
    }
}

fn calls() -> Seeds {
    const CONTROL: u8 = 3;
    const FAULT_STACK: u8 = 5;
    const DATA: u8 = 6;
    const SHARED_END: u8 = 8;
    const MEMORY_END: u8 = 9;
    let guest = || Bytes::default().u8(150);
    let around = |operation: u8, tail: fn(Bytes) -> Bytes| {
        (0..12).fold(guest(), |bytes, place| {
            let bytes = tail(bytes.u8(operation).at(place, 0));
            tail(bytes.u8(operation).at(place, -8))
        })
    };
    vec![
        ("reads", around(call::READ, |bytes| bytes.u16(100)).0),
        ("writes", around(call::WRITE, |bytes| bytes.u16(100).u8(7)).0),
        ("discards", around(call::DISCARD, |bytes| bytes.u64(4096)).0),
        ("populates", around(call::POPULATE, |bytes| bytes.u64(8192)).0),
        ("little-memory", Bytes::default().u8(3).u8(call::READ).at(DATA, 0).u16(1).0),
        ("write-discard-read", {
            let written = guest().u8(call::WRITE).at(DATA, 4000).u16(5000).u8(9);
            let dropped = written.u8(call::DISCARD).at(DATA, 4096).u64(4096);
            dropped.u8(call::READ).at(DATA, 4000).u16(5000).0
        }),
        ("ends", {
            let read =
                guest().u8(call::READ).at(SHARED_END, -1).u16(2).u8(call::READ).at(MEMORY_END, -9).u16(9);
            read.u8(call::WRITE)
                .at(MEMORY_END, -9)
                .u16(10)
                .u8(3)
                .u8(call::WRITE)
                .at(CONTROL, -1)
                .u16(0)
                .u8(0)
                .0
        }),
        ("huge", guest().u8(call::DISCARD).at(DATA, 0).u64(u64::MAX - 4095).0),
        ("faults", {
            let first = guest().u8(call::FAULT_FRAME).u32(0).at(FAULT_STACK, 16);
            let last = first.u8(call::FAULT_FRAME).u32(63).at(FAULT_STACK, 63 * 64);
            last.u8(call::FAULT_FRAME).u32(64).at(FAULT_STACK, 4096).0
        }),
        ("boot", guest().u8(call::BOOT).u8(3).put([5, 0, 255]).u8(call::BOOT).u8(40).put([255; 40]).0),
    ]
}

fn requests() -> Seeds {
    let text = |text: &str| text.replace('\n', "\r\n").into_bytes();
    vec![
        ("get", text("GET /a?b=c HTTP/1.1\nHost: x\nUser-Agent: curl/7\nAccept: */*\n\nGET")),
        ("post", text("POST /x HTTP/1.1\nHost: a\nContent-Length: 5\nExpect: 100-continue\n\nhello")),
        ("old", text("GET / HTTP/1.0\nConnection: Keep-Alive\n\n")),
        ("close-and-keep", text("GET / HTTP/1.0\nConnection: close, keep-alive\n\n")),
        ("close", text("HEAD / HTTP/1.1\nhost: x\nconnection: te, Close\nIf-None-Match: W/\"q\", *\n\n")),
        ("options", text("OPTIONS * HTTP/1.1\nHost: x\n\n")),
        ("chunked", text("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n")),
        ("two-lengths", text("GET / HTTP/1.1\nHost: a\nContent-Length: 1\nContent-Length: 2\n\n")),
        ("two-hosts", text("GET / HTTP/1.1\nHost: a\nHost: b\n\n")),
        ("version", text("GET / HTTP/2.0\nHost: a\n\n")),
        ("newlines", b"\n\nGET / HTTP/1.1\nHost: a\n\n".to_vec()),
        ("partial", text("GET / HTTP/1.1\nHost: a\nX")),
        ("nonsense", text("NONSENSE\n\n")),
        ("number", b"18446744073709551615".to_vec()),
        ("tags", b"\"a\", W/\"0123456789abcdef\"".to_vec()),
        ("long-target", text(&format!("GET /{} HTTP/1.1\nHost: a\n\n", "a".repeat(4096)))),
        ("many-fields", text(&format!("GET / HTTP/1.1\nHost: a\n{}\n", "X: y\n".repeat(64)))),
        ("long-head", text(&format!("GET / HTTP/1.1\nHost: a\nX: {}\n\n", "a".repeat(8200)))),
    ]
}
