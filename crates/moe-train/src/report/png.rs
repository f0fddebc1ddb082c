//! A palette picture as a `data:` address, so that the page needs no second file.

use std::io::Write;

use flate2::{Compression, write::ZlibEncoder};

/// Encodes `width x (pixels / width)` indices into `palette`, row by row, as PNG
/// ([RFC 2083](https://www.rfc-editor.org/rfc/rfc2083)) in base64.
pub(super) fn data_uri(width: usize, palette: &[[u8; 3]], pixels: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64(&encode(width, palette, pixels)))
}

fn encode(width: usize, palette: &[[u8; 3]], pixels: &[u8]) -> Vec<u8> {
    let height = pixels.len() / width.max(1);
    let mut header = [width as u32, height as u32].map(u32::to_be_bytes).concat();
    // 8 bits, palette colours, the only compression, the only filter set, not interlaced.
    header.extend([8, 3, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut png, b"IHDR", &header);
    chunk(&mut png, b"PLTE", &palette.concat());
    chunk(&mut png, b"IDAT", &compress(width, pixels));
    chunk(&mut png, b"IEND", &[]);
    png
}

fn chunk(png: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    png.extend((data.len() as u32).to_be_bytes());
    let start = png.len();
    png.extend(kind);
    png.extend(data);
    let crc = crc32fast::hash(&png[start..]);
    png.extend(crc.to_be_bytes());
}

fn compress(width: usize, pixels: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in pixels.chunks(width.max(1)) {
        // Every row begins with its filter: none.
        encoder.write_all(&[0]).and_then(|()| encoder.write_all(row)).expect("a Vec takes all");
    }
    encoder.finish().expect("a Vec takes all")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(*chunk.get(i).unwrap_or(&0)));
        for digit in 0..4 {
            let index = bits >> (18 - 6 * digit) & 63;
            text.push(if digit <= chunk.len() { DIGITS[index as usize] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::ZlibDecoder;

    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648, section 10.
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in cases {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn chunks_carry_their_length_and_checksum() {
        let png = encode(2, &[[0, 0, 0], [255, 255, 255]], &[0, 1, 1, 0]);
        let mut rest = &png[8..];
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let len = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            let crc = u32::from_be_bytes(rest[8 + len..12 + len].try_into().unwrap());
            assert_eq!(crc, crc32fast::hash(&rest[4..8 + len]));
            kinds.push(String::from_utf8(rest[4..8].to_vec()).unwrap());
            rest = &rest[12 + len..];
        }
        assert_eq!(kinds, ["IHDR", "PLTE", "IDAT", "IEND"]);
    }

    #[test]
    fn rows_come_back_behind_their_filter() {
        let mut rows = Vec::new();
        ZlibDecoder::new(&compress(3, &[1, 2, 3, 4, 5, 6])[..]).read_to_end(&mut rows).unwrap();
        assert_eq!(rows, [0, 1, 2, 3, 0, 4, 5, 6]);
    }
}
