"""Encoders: image → Features. A new one is one file and one line of `ENCODERS`."""

from jaxseg.encoders import cgnet

ENCODERS = {
  "cgnet_m3n21_encoder": cgnet.cgnet_m3n21,
}
