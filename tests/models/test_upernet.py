from segmenter_tester import BaseSegmenterTester


class TestUPerNet(BaseSegmenterTester):
    architecture = "upernet"
    decoder_channels = 32
    any_shape = False  # its pooling pyramid is traced at one size
