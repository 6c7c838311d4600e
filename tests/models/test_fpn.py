from segmenter_tester import BaseSegmenterTester


class TestFPN(BaseSegmenterTester):
    architecture = "fpn"
    decoder_channels = 64
