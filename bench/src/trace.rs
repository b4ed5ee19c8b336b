//! The record of points that frames pass in the VMM (`vmm launch --trace FILE`), and what it says of one echo.
//!
//! The file holds records of 16 bytes, little-endian: time-stamp counter (8), kind (4), bytes of the frame (4).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::echo::Echo;

/// Bytes of a record.
const RECORD: usize = 16;

/// Points on the way of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Point {
    /// Reading it from the TAP device returned.
    TapRead = 1,
    /// It stands in the guest's receive ring.
    Published = 2,
    /// It was found in the guest's transmit ring.
    Taken = 3,
    /// Writing it to the TAP device starts.
    TapWrite = 4,
}

impl Point {
    const ALL: [Point; 4] = [Point::TapRead, Point::Published, Point::Taken, Point::TapWrite];
}

/// Every point that was passed, by time.
#[derive(Debug)]
pub struct Trace(Vec<(u64, Point)>);

/// What an echo's way consists of, in ticks. The rest of the whole is the host's stack and the guest's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Way {
    /// From the client's send to its receive.
    pub whole: u64,
    /// In the VMM: from the TAP device into the ring, and from the ring to the TAP device.
    pub vmm: u64,
    /// The crossing to the guest: from the moment the request stood in the ring to the moment the guest saw it.
    pub crossing_in: u64,
    /// The crossing from the guest: from the moment the answer stood in the ring to the moment the VMM saw it.
    pub crossing_out: u64,
}

impl Trace {
    /// Reads a record of the VMM's.
    ///
    /// # Errors
    /// When there is none, or it is not of this form.
    pub fn read(path: &Path) -> Result<Trace> {
        Trace::parse(&fs::read(path).with_context(|| format!("no trace in {}", path.display()))?)
    }

    fn parse(bytes: &[u8]) -> Result<Trace> {
        ensure!(bytes.len().is_multiple_of(RECORD), "the trace ends inside a record");
        let mut points = Vec::with_capacity(bytes.len() / RECORD);
        for record in bytes.chunks_exact(RECORD) {
            let time = u64::from_le_bytes(record[..8].try_into()?);
            let kind = u32::from_le_bytes(record[8..12].try_into()?);
            let point = Point::ALL.into_iter().find(|p| *p as u32 == kind);
            points.push((time, point.with_context(|| format!("the trace has an unknown point {kind}"))?));
        }
        points.sort_by_key(|(time, _)| *time);
        Ok(Trace(points))
    }

    /// The way of one echo; `None` unless exactly one frame passed each point while it was under way, in order.
    ///
    /// The guest's stamps are when it saw the request in its receive ring, and when the answer stood in its transmit
    /// ring.
    #[must_use]
    pub fn way(&self, echo: &Echo, seen: u64, answered: u64) -> Option<Way> {
        let from = self.0.partition_point(|(time, _)| *time < echo.sent);
        let to = self.0.partition_point(|(time, _)| *time <= echo.received);
        let mut times = [0; 4];
        let window = &self.0[from..to];
        if window.len() != times.len() {
            return None;
        }
        for (slot, point) in times.iter_mut().zip(Point::ALL) {
            *slot = window.iter().find(|(_, p)| *p == point)?.0;
        }
        let [tap_read, published, taken, tap_write] = times;
        // The other side may see a ring's index before this side has stamped it: that crossing took no time.
        let ordered = tap_read <= published && taken <= tap_write && seen <= answered;
        ordered.then(|| Way {
            whole: echo.received - echo.sent,
            vmm: (published - tap_read) + (tap_write - taken),
            crossing_in: seen.saturating_sub(published),
            crossing_out: taken.saturating_sub(answered),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(points: &[(u64, u32)]) -> Result<Trace> {
        let record =
            |(time, kind): &(u64, u32)| [&time.to_le_bytes()[..], &kind.to_le_bytes(), &[0; 4]].concat();
        Trace::parse(&points.iter().flat_map(record).collect::<Vec<u8>>())
    }

    fn echo(sent: u64, received: u64) -> Echo {
        Echo { sent, stamps: [0; crate::echo::STAMPS], received }
    }

    #[test]
    fn a_way_is_cut_at_its_points() {
        let trace = trace(&[(5, 1), (110, 1), (115, 2), (140, 3), (147, 4), (300, 1)]).unwrap();
        let way = trace.way(&echo(100, 200), 118, 135).unwrap();
        assert_eq!(way, Way { whole: 100, vmm: 5 + 7, crossing_in: 3, crossing_out: 5 });
    }

    #[test]
    fn another_frame_on_the_way_makes_it_unclear() {
        let clear = [(110, 1), (115, 2), (140, 3), (147, 4)];
        assert!(trace(&clear).unwrap().way(&echo(100, 200), 118, 135).is_some());
        for extra in 1..=4 {
            let unclear = [&clear[..], &[(150, extra)]].concat();
            assert_eq!(trace(&unclear).unwrap().way(&echo(100, 200), 118, 135), None);
        }
        assert_eq!(trace(&clear[..3]).unwrap().way(&echo(100, 200), 118, 135), None);
    }

    #[test]
    fn a_broken_file_is_refused() {
        assert!(Trace::parse(&[0; 15]).is_err());
        assert!(trace(&[(1, 9)]).is_err());
    }
}
