from segmenter_tester import BaseSegmenterTester


class TestSegformer(BaseSegmenterTester):
    architecture = "segformer"
    decoder_channels = 32
