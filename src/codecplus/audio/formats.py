"""Audio formats by the suffixes and the first bytes of their files. Reads no samples."""

# Suffixes of what libsndfile reads without being told a rate.
_SOUNDFILE = """
.wav .wave .bwf .rf64 .w64 .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .au .snd .caf
.voc .sph .nist .ircam .avr .paf .pvf .8svx .svx
"""
# Suffixes of what FFmpeg reads, through PyAV.
_CONTAINER = """
.m4a .m4b .mp4 .mov .3gp .3g2 .webm .weba .mka .mkv .aac .ac3 .eac3 .amr .wma .asf .ape .wv
.tta .mpc .dsf .spx
"""
SOUNDFILE_SUFFIXES = frozenset(_SOUNDFILE.split())
CONTAINER_SUFFIXES = frozenset(_CONTAINER.split())
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | CONTAINER_SUFFIXES

_ASF = bytes.fromhex("3026b2758e66cf11")
_MATROSKA = b"\x1a\x45\xdf\xa3"
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_MAGIC = {
    _MATROSKA: "matroska",
    _ASF: "asf",
    b"#!AMR": "amr",
    b"MAC ": "ape",
    b"wvpk": "wv",
    b"TTA1": "tta",
    b"MPCK": "mpc8",
    b"MP+": "mpc",
    b"DSD ": "dsf",
}
_FALLBACKS = {
    b"OggS": "ogg",
    b"caff": "caf",
    b"RIFF": "wav",
    b"FORM": "aiff",
    b".snd": "au",
    b"ID3": "aac",
}
HEADER_BYTES = 16  # of a file, enough to tell its container


def container_of(start: bytes) -> str | None:
    """Return FFmpeg's name of a container that libsndfile does not know, else None.

    FFmpeg must be told: left to guess, it takes playlists too, which open other files.

    Args:
        start: the first `HEADER_BYTES` of the file.
    """
    if start[4:8] in _MP4_BOXES:
        return "mp4"
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            return name
    if start[:1] == b"\xff" and len(start) > 1 and start[1] & 0xF6 == 0xF0:
        return "aac"  # ADTS; the layer bits of an MP3 are not zero
    if start[:2] == b"\x0b\x77" and len(start) > 5:
        return "ac3" if start[5] >> 3 <= 10 else "eac3"
    return None


def fallback_container_of(start: bytes) -> str | None:
    """Return FFmpeg's name of a container that libsndfile knows, but not with every codec in it."""
    for magic, name in _FALLBACKS.items():
        if start.startswith(magic):
            return name
    return None
